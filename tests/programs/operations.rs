//! What an operator does by the guide: checks with few privileges, a running balancer's diagnosis;
//! and systemd accepts the guide's units. (`tests/docs` parses its commands.)

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::pages;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::program::katran;

const SIGTERM: i32 = 15;
const SIGUSR1: i32 = 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration with a VIP and a real.
fn configuration(lab: &Lab) -> String {
    let gateway = lab.balancers[0].gateway_mac;
    let gateway = gateway.map(|octet| format!("{octet:02x}")).join(":");
    format!(
        "[balancer]\ngateway_mac = \"{gateway}\"\nflow_table_size = 10_000\nsource_v4 = \"10.0.0.2\"\n\
         [[vip]]\naddress = \"{}\"\nport = 80\nprotocol = \"tcp\"\n\
         reals = [{{ address = \"{}\" }}]\n",
        lab.vip4(),
        lab.backends[0].v4
    )
}

/// Runs an example with only these capabilities; returns whether it succeeded, and its output.
fn with_capabilities(
    host: &Host,
    capabilities: &str,
    name: &str,
    arguments: &[&str],
) -> (bool, String) {
    let example = example(name);
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all,{capabilities}"));
    command.arg(format!("--inh-caps=-all,{capabilities}"));
    command.arg(example.get_program()).args(arguments);
    let output = host.output(command).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (
        output.status.success(),
        text + &String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn check_says_which_privileges_are_missing() {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth1 up").unwrap();
    let file = Scratch::new("privileges.toml");
    file.write("[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n");
    let config = file.0.to_str().unwrap();
    let of_balancer = ["check", config, "--interface", "eth0"];
    let of_decap = ["decap", "--interface", "eth0", "--check"];
    for (name, arguments) in [("katran", &of_balancer[..]), ("katran", &of_decap[..])] {
        let (works, text) = with_capabilities(&host, "+net_admin", name, arguments);
        assert!(!works, "{text}");
        assert!(text.contains("PROBLEM  privileges"), "{text}");
        assert!(text.contains("missing: CAP_PERFMON, CAP_BPF"), "{text}");
        // The capabilities in the guide's units.
        let guide = "+net_admin,+bpf,+perfmon";
        let (works, text) = with_capabilities(&host, guide, name, arguments);
        assert!(works, "{text}");
        assert!(text.contains("ok       privileges"), "{text}");
    }
}

#[test]
fn a_running_balancer_says_what_keeps_it_from_working() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let file = Scratch::new("running.toml");
    file.write(&configuration(&lab));
    let config = file.0.to_str().unwrap();
    let sites: [&[&str]; 2] = [&[], &["--probe", "--listen", "127.0.0.1:0"]];
    for more in sites {
        let mut command = katran("run");
        command.args(["--config", config, "--interface", "eth0"]);
        command.args(more);
        let mut running = Running::start(host, command);
        running.says("balancing on eth0 in native mode");
        running.process.signal(SIGUSR1).unwrap();
        running.says("attached to eth0");
        running.says("0 problems");
        // The diagnosis uses the running balancer's counters.
        let client = lab.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        client.send_to(&vec![0; 2000], (lab.vip4(), 80)).unwrap();
        let drops = |running: &mut Running| {
            running.process.signal(SIGUSR1).unwrap();
            running.says("drops").contains("ipv4_fragment")
        };
        let end = Instant::now() + PATIENCE;
        while !drops(&mut running) {
            assert!(
                Instant::now() < end,
                "drops are never reported with {more:?}"
            );
        }
        // A check beside it reports the other balancer.
        let mut command = katran("check");
        command.args([config, "--interface", "eth0"]);
        let output = host.output(command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("a balancer of another process"), "{text}");
        running.end(SIGTERM);
        running.says("detached from eth0");
    }

    // In shared mode the check needs the interface.
    let path = pins.join("running").display().to_string();
    let mut command = example("root");
    command.args(["attach", "--interface", "eth0", "--path", &path]);
    assert!(host.output(command).unwrap().status.success());
    let shared = ["--config", config, "--shared", &path];
    let check = |more: &[&str]| {
        let mut command = katran("check");
        command.args([config, "--shared", &path]).args(more);
        let output = host.output(command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (
            output.status.success(),
            text + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (works, text) = check(&[]);
    let missing = "required arguments were not provided:\n  --interface <NAME>";
    assert!(!works && text.contains(missing), "{text}");
    let (works, text) = check(&["--interface", "eth0"]);
    assert!(works && text.contains("ok       empty"), "{text}");
    let (works, text) = check(&["--interface", "eth0", "--position", "9"]);
    assert!(
        !works && text.contains("PROBLEM  does not exist: the root program has entries 0 to 2"),
        "{text}"
    );
    for (more, says) in [
        (
            &["--interface", "eth0"][..],
            "an entry of the root program there",
        ),
        (&[], "also needs --interface"),
    ] {
        let mut command = katran("run");
        command.args(shared).args(more);
        let mut running = Running::start(host, command);
        running.says("balancing as entry 2");
        running.process.signal(SIGUSR1).unwrap();
        running.says(says);
        let (works, text) = check(&["--interface", "eth0"]);
        assert!(works && text.contains("would be replaced"), "{text}");
        running.end(SIGTERM);
        running.says("left ");
    }
    let mut command = example("root");
    command.args(["remove", "--path", &path]);
    assert!(host.output(command).unwrap().status.success());
}

/// A document's code blocks in one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let of_language = pages::blocks(text).filter(|(begin, _)| *begin == language);
    of_language.map(|(_, block)| block.to_owned()).collect()
}

/// Every unit that the guide starts has its file there, and every unit file is started.
#[test]
fn the_guide_starts_exactly_its_own_units() {
    let text = pages::read("docs/operations.md");
    let scripts = blocks(&text, "sh");
    assert!(scripts.len() >= 15, "{}", scripts.len());
    let mut units = BTreeSet::new();
    for unit in blocks(&text, "ini") {
        let (name, content) = unit.split_once('\n').unwrap();
        let Some((_, name)) = name.split_once("/etc/systemd/system/") else {
            continue;
        };
        for section in ["[Unit]", "[Service]", "[Install]", "WantedBy="] {
            assert!(content.contains(section), "{name}: {section}");
        }
        // A service that ends is restarted, without a limit.
        if !content.contains("Type=oneshot") {
            for line in ["Restart=always", "RestartSec=1", "StartLimitIntervalSec=0"] {
                assert!(content.contains(line), "{name}: {line}");
            }
        }
        units.insert(name.trim_end_matches(".service").to_owned());
    }
    let enabled = scripts.iter().flat_map(|script| script.lines());
    let enabled = enabled.filter_map(|line| line.strip_prefix("systemctl enable --now "));
    let enabled: BTreeSet<_> = enabled
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    assert_eq!(units, enabled);
    assert!(units.len() >= 4, "{units:?}");
}

/// What `systemd-analyze` says about the guide's units, with replaced programs, each changed by
/// `change`.
fn said_of_units(change: impl Fn(String) -> String) -> String {
    let text = pages::read("docs/operations.md");
    let directory = tempfile::tempdir().unwrap();
    let programs = example("katran").get_program().to_owned();
    let programs = Path::new(&programs).parent().unwrap().to_owned();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify");
    for unit in blocks(&text, "ini") {
        let (name, content) = unit.split_once('\n').unwrap();
        let Some((_, name)) = name.split_once("/etc/systemd/system/") else {
            continue;
        };
        let content = content.replace("/usr/local/sbin/katran-nic", "/bin/true");
        let content = content.replace("/usr/local/sbin", programs.to_str().unwrap());
        let path = directory.path().join(name);
        fs::write(&path, change(content)).unwrap();
        verify.arg(path);
    }
    // The drop-in that a command adds to one of them.
    let drop_in = text.split("<<'END'\n").nth(1).unwrap();
    let (drop_in, _) = drop_in.split_once("END\n").unwrap();
    let of_katran = directory.path().join("katran.service.d");
    fs::create_dir(&of_katran).unwrap();
    fs::write(of_katran.join("remove.conf"), change(drop_in.to_owned())).unwrap();
    let output = verify.output().unwrap();
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn systemd_takes_the_units_of_the_guide() {
    assert_eq!(said_of_units(|unit| unit), "");
    for (right, wrong) in [
        ("RestartSec=", "RestartSeconds="),
        ("/katran run", "/katrans run"),
        ("ExecStopPost=", "ExecStopAfter="),
    ] {
        let said = said_of_units(|unit| unit.replace(right, wrong));
        assert!(said.contains("katran.service"), "{wrong}: {said}");
    }
}

#[test]
fn the_units_capabilities_suffice_for_pins() {
    require_root();
    let pins = private_bpf_fs().unwrap().join("katran");
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = Scratch::new("unit.toml");
    file.write(&configuration(&lab));
    let config = file.0.to_str().unwrap();
    let of_balancer = [
        "run",
        "--no-socket",
        "--config",
        config,
        "--interface",
        "eth0",
    ];
    let of_decap = ["decap", "--interface", "eth0"];
    let units = blocks(&pages::read("docs/operations.md"), "ini");
    let [balancer, backend] = [&lab.balancers[0].host, &lab.backends[0].host];
    for (unit, host, arguments, says) in [
        (
            "katran",
            balancer,
            &of_balancer[..],
            ["balancing on", "continuing with the"],
        ),
        (
            "katran-decap",
            backend,
            &of_decap,
            ["stripping tunnels", "continuing with the"],
        ),
    ] {
        let file = format!("# /etc/systemd/system/{unit}.service\n");
        let unit = units.iter().find(|unit| unit.starts_with(&file)).unwrap();
        assert!(unit.contains("--pin"));
        let mut lines = unit.lines();
        let set = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let set = set.unwrap().replace("CAP_", "+").replace(' ', ",");
        let capabilities = format!("-all,{}", set.to_lowercase());
        for start in says {
            let mut command = Command::new("setpriv");
            command.arg(format!("--bounding-set={capabilities}"));
            command.arg(format!("--inh-caps={capabilities}"));
            command.arg(example("katran").get_program()).args(arguments);
            command.arg("--pin").arg(&pins);
            let mut running = Running::start(host, command);
            running.says(start);
            running.end(SIGTERM);
        }
        let mut remove = katran("remove");
        remove.arg("--pin").arg(&pins);
        assert!(host.output(remove).unwrap().status.success());
        assert!(!pins.exists());
    }
}

/// The script's part that finds interrupts, on this machine's interfaces.
#[test]
fn the_script_for_interrupts_runs() {
    require_root();
    let script = pages::read("examples/katran-nic");
    assert!(script.contains("msi_irqs"));
    // Changes nothing on the machine: it writes to a file, and does not call ethtool.
    let told = Scratch::new("interrupts");
    let told = told.0.display();
    let dry = script
        .replace(">/proc/irq/$irq/smp_affinity_list", &format!(">>{told}"))
        .replace("ethtool -", ": -")
        .replace("nic=eth0", "nic=$1");
    assert!(!dry.contains(">/proc/") && dry.contains(&told.to_string()));
    for interface in fs::read_dir("/sys/class/net").unwrap() {
        let name = interface.unwrap().file_name();
        let mut command = Command::new("sh");
        command.arg("-ec").arg(&dry).arg("katran-nic").arg(name);
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            assert!(
                line.contains("(interrupt ") && line.contains("): CPU "),
                "{line}"
            );
        }
    }
}
