//! The commands of the operations guide and the README, run as printed, on client, router, balancer
//! and backends, each with its own files. Each block is run, or has a reason why not.

use std::path::Path;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::eventually;
use katran_lab::require_root;

use crate::pages;
use crate::program::example;
use crate::shell::Shell;
use crate::shell::quoted;

const TOOLS: &str = include_str!("guide/tools.sh");

/// The blocks of a document that are not dealt with yet.
struct Guide(Vec<(String, String)>);

impl Guide {
    fn read(path: &str) -> Self {
        let text = pages::read(path);
        let blocks = pages::blocks(&text);
        Self(
            blocks
                .map(|(language, block)| (language.to_owned(), block.to_owned()))
                .collect(),
        )
    }

    /// The only block of commands with these words.
    fn take(&mut self, words: &str) -> String {
        let has = |(language, block): &(String, String)| language == "sh" && block.contains(words);
        let mut found = (0..self.0.len()).filter(|at| has(&self.0[*at]));
        let at = found
            .next()
            .unwrap_or_else(|| panic!("no block with {words:?}"));
        assert_eq!(found.next(), None, "more than one block with {words:?}");
        self.0.remove(at).1
    }

    /// Takes the block with these words without running it, for this reason.
    fn leave(&mut self, words: &str, reason: &str) {
        assert!(!reason.is_empty());
        self.take(words);
    }

    /// Checks that no block is left.
    fn ends(self) {
        let left: Vec<_> = self
            .0
            .iter()
            .filter(|(language, _)| language == "sh")
            .collect();
        assert!(
            left.is_empty(),
            "neither run nor left for a reason: {left:#?}"
        );
    }
}

/// A shell on a host with its own files.
struct Terminal(Shell);

impl Terminal {
    fn open(host: &Host) -> Self {
        let program = example("katran").get_program().to_owned();
        let program = program.into_string().unwrap();
        let mut terminal = Self(Shell::open(host, &["sh"], ("KATRAN", &program)));
        terminal.0.read(TOOLS);
        terminal.run("true");
        terminal
    }

    /// Writes a file.
    fn write(&mut self, path: &str, text: &str) {
        assert!(!text.contains("@END@"));
        self.run(&format!(
            "mkdir -p $(dirname {path}); cat >{path} <<'@END@'\n{text}\n@END@"
        ));
    }

    /// Runs a block, and returns what it prints.
    fn run(&mut self, block: &str) -> String {
        let (status, text) = self.0.run(&format!("sh -ec {} 2>&1", quoted(block)));
        assert_eq!(status, "0", "{block}\n{text}");
        text
    }

    /// Runs a block whose last command runs until a signal, sent once it has printed this.
    fn run_until_ended(&mut self, block: &str, says: &str) {
        // The shell waits until its command has answered the signal.
        let quoted = quoted(&format!("trap : TERM\n{block}"));
        let text = self.run(&format!(
            "setsid sh -ec {quoted} >/run/said 2>&1 </dev/null &\n\
             for _ in $(seq 300); do grep -q '{says}' /run/said && break; sleep 0.1; done\n\
             kill -TERM -$!; wait $! || {{ cat /run/said; exit 1; }}; cat /run/said"
        ));
        assert!(text.contains(says), "{block}\n{text}");
    }

    fn has_no_pins(&mut self) {
        // The file system itself has entries, with dots.
        let pins = self.run("ls /sys/fs/bpf | grep -v \\. || true");
        assert_eq!(pins.trim(), "");
    }
}

/// Writes the guide's files: units, settings, the configuration and the script that it installs.
fn write_files(guide: &Guide, terminal: &mut Terminal) {
    for (language, block) in &guide.0 {
        let path = match (language.as_str(), block.split_once('\n')) {
            ("toml", _) => "/etc/katran.toml",
            ("ini", Some((name, _))) => name.trim_start_matches("# "),
            _ => continue,
        };
        // This machine may have fewer CPUs.
        let block = block.replace("forwarding_cpus = [0, 1, 2, 3]", "forwarding_cpus = [0]");
        terminal.write(path, &block);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/katran-nic");
    terminal.run(&format!("cp -p {} /usr/local/sbin/", script.display()));
}

#[test]
fn commands_of_the_guide_do_as_they_say() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let mut guide = Guide::read("docs/operations.md");
    let mut router = Terminal::open(&lab.router);
    let mut balancer = Terminal::open(&lab.balancers[0].host);
    let mut backends: Vec<_> = lab
        .backends
        .iter()
        .map(|of| Terminal::open(&of.host))
        .collect();
    for terminal in backends.iter_mut().chain([&mut balancer]) {
        write_files(&guide, terminal);
    }
    let answers = |what: &str| {
        eventually(what, || {
            let client = TcpClient::connect(&lab.client, (lab.vip4(), 80).into());
            client.is_ok_and(|mut client| client.ask("who").is_ok())
        });
    };

    // Install
    for distribution in ["cargo-web", "rustup default stable"] {
        guide.leave(distribution, "it installs compilers: `scripts/setup` does");
    }
    guide.leave(
        "scp target",
        "it builds a release, and copies it to hosts that are not there",
    );
    let block = guide.take("katran completions bash");
    for terminal in backends.iter_mut().chain([&mut balancer]) {
        terminal.run(&block);
        let made = terminal
            .run("ls /usr/local/share/man/man1 /usr/local/share/bash-completion/completions");
        assert!(made.contains("katran-run.1"), "{made}");
    }

    // Network and backends
    let address = guide.take("arp_ignore=1 net.ipv4.conf.eth0.arp_announce=2");
    let longer = guide.take("ip link set eth0 mtu 1600          #");
    let route = guide.take("dev eth0 mtu 1500");
    let segments = guide.take("dev eth0 advmss 1400");
    let check = guide.take("--check --vip 203.0.113.1\nkatran decap");
    let service = guide.take("systemctl enable --now katran-route katran-decap");
    for backend in &mut backends {
        backend.run("ip addr del 203.0.113.1/32 dev lo");
        for block in [&address, &longer, &route, &segments] {
            backend.run(block);
        }
        backend.run_until_ended(&check, "stripping tunnels on eth0");
        backend.run(&service);
    }
    guide.leave(
        "modprobe -a ipip",
        "it takes modules: `make kernels`, job `tunnels`",
    );

    // The balancer's network card
    balancer.run(&guide.take("\nkatran-nic "));
    balancer.run(&guide.take("systemctl enable --now katran-nic"));
    balancer.run(&longer);

    // Start, and share an interface
    balancer.run_until_ended(
        &guide.take("katran run --config /etc/katran.toml --interface eth0\n"),
        "balancing on eth0",
    );
    balancer.run_until_ended(&guide.take("katran root attach"), "balancing as entry 2");
    balancer.run("katran root remove");
    let text = balancer.run(&guide.take("systemctl status katran; journalctl"));
    assert!(text.contains("balancing on eth0"), "{text}");
    router.run(&guide.take("ip route replace 203.0.113.1/32"));
    answers("as started");
    let start_over = guide.take("katran remove --pin /sys/fs/bpf/katran\nsystemctl start katran");
    let ends = guide.take("systemctl stop katran\nkatran remove");
    balancer.run(&ends);
    balancer.has_no_pins();
    balancer.run(&guide.take("remove.conf"));
    balancer.run("rm -r /etc/systemd/system/katran.service.d; systemctl start katran");
    balancer.run(&guide.take("ip route add unreachable"));
    balancer.run("ip addr del 203.0.113.1/32 dev lo; ip route del unreachable 203.0.113.1/32");
    answers("as started again");

    // Watch
    let see = guide.take("katran status --json | head -c 300");
    assert!(see.contains("\nkatran top "));
    let text = balancer.run(&see.replace("\nkatran top ", "\n: "));
    for says in [
        "203.0.113.1:80/tcp",
        "198.51.100.2",
        "{\"version\":",
        "katran_vip_packets_total",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    balancer.run_until_ended(&guide.take("katran monitor --event"), "listening");
    guide.leave(
        "tcpdump -ni",
        "tcpdump waits for packets, and is no package that tests need",
    );

    // Upgrade, roll back, remove
    let text = balancer.run(&guide.take("install -m 0755 /root/new/katran ."));
    assert!(
        text.contains("continuing with the balancer in /sys/fs/bpf/katran"),
        "{text}"
    );
    answers("as upgraded");
    balancer.run(&guide.take("--take-over"));
    let text = balancer.run("journalctl -u katran");
    assert!(text.contains("was handed over to process"), "{text}");
    balancer.run(&guide.take("systemctl stop katran-next"));
    answers("as handed over, twice");
    balancer.run(&start_over);
    answers("as started over");
    balancer.run(&guide.take("-depth -delete"));
    balancer.run("systemctl start katran");
    answers("as taken away by hand, and started");
    balancer.run(&guide.take("systemctl disable --now katran\n"));
    balancer.has_no_pins();

    // When it does not forward, and the end of a backend
    let text = backends[0].run(&guide.take("# on the backend\n"));
    assert!(text.contains("0 problems"), "{text}");
    let ends = guide.take("systemctl stop katran-decap\nkatran remove");
    for backend in &mut backends {
        backend.run(&ends);
        backend.has_no_pins();
    }
    guide.ends();
}

#[test]
fn commands_of_the_readme_are_those_of_the_guide() {
    let mut readme = Guide::read("README.md");
    readme.leave("make demo", "CI runs both");
    readme.leave(
        "cargo build --release --example katran",
        "the guide's are run",
    );
    readme.ends();
}

/// A check before each start would double a restart's outage.
#[test]
fn no_unit_checks_before_it_starts() {
    let guide = Guide::read("docs/operations.md");
    let units = guide
        .0
        .iter()
        .filter(|(_, block)| block.contains("[Service]"));
    let mut seen = 0;
    for (_, unit) in units {
        let before = unit
            .lines()
            .filter(|line| line.starts_with("ExecStartPre="));
        assert!(
            !before.into_iter().any(|line| line.contains("check")),
            "{unit}"
        );
        seen += 1;
    }
    assert!(seen >= 4);
}
