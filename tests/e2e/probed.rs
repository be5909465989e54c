//! Health checks (`katran::health`) at work: reals that are dead, start, stop and flap; a checker
//! that is cut off; concurrent changes; and what remains when the checks end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::channel;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::HashFunction;
use katran::Katran;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::XdpMode;
use katran::health::Check;
use katran::health::Command;
use katran::health::Event;
use katran::health::Health;
use katran::health::Policy;
use katran::health::RealPolicy;
use katran::health::Settings;
use katran::health::Status;
use katran::health::Via;
use katran::state::VipState;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::require_root;

use crate::site::PORT;
use crate::site::decaps;
use crate::site::eventually;
use crate::site::small;

const PATIENCE: Duration = Duration::from_secs(20);

/// A lab whose balancer has health checks, not attached yet.
struct Probed {
    // In this order: programs are dropped before the interfaces they are attached to.
    health: Option<Health>,
    katran: Arc<Mutex<Katran>>,
    _decaps: Vec<Decap>,
    lab: Lab,
    events: Receiver<Event>,
}

impl Probed {
    fn new(policy: Policy) -> Self {
        require_root();
        let lab = Lab::new(LabConfig::default()).unwrap();
        let decaps = decaps(&lab, XdpMode::Native);
        let balancer = &lab.balancers[0];
        let katran = small(katran::MacAddr::new(balancer.gateway_mac))
            .healthcheck_interface("eth0")
            .source_v4("10.0.0.2".parse().unwrap())
            .source_v6("2001:db8:b::2".parse().unwrap());
        let katran = Arc::new(Mutex::new(katran.load().unwrap()));
        let (sender, events) = channel();
        let mut settings = Settings::default();
        settings.tcp = policy;
        let on_event = move |event: &Event| sender.send(event.clone()).unwrap_or_default();
        let health = balancer
            .host
            .run(|| Health::start_with(&katran, settings, on_event).unwrap());
        Self {
            health: Some(health),
            katran,
            _decaps: decaps,
            lab,
            events,
        }
    }

    fn health(&self) -> &Health {
        self.health.as_ref().unwrap()
    }

    fn vip(&self) -> Vip {
        Vip::tcp((self.lab.vip4(), PORT).into())
    }

    fn real(&self, index: usize) -> IpAddr {
        self.lab.backends[index].v4.into()
    }

    /// The VIP with both backends and these weights.
    fn wanted(&self, weights: [u32; 2]) -> State {
        let mut of_vip = VipState::new(self.vip());
        let reals = [0, 1].map(|index| Real::new(self.real(index)).weight(weights[index]));
        of_vip.reals.extend(reals);
        let mut state = State::default();
        state.vips.push(of_vip);
        state
    }

    fn attach(&self) {
        let balancer = &self.lab.balancers[0];
        let katran = &self.katran;
        let attach = || {
            katran
                .lock()
                .unwrap()
                .attach("eth0", XdpMode::Native)
                .unwrap()
        };
        let _ = balancer.host.run(attach);
    }

    /// The servers that answer enough clients to meet each of two.
    fn names(&self) -> BTreeSet<String> {
        let ask = |_| {
            let client = TcpClient::connect(&self.lab.client, (self.lab.vip4(), PORT).into());
            let answer = client.and_then(|mut client| client.ask("who?"));
            answer.unwrap_or_else(|error| error.to_string())
        };
        (0..30).map(ask).collect()
    }

    fn until(&self, expected: &[&str]) {
        let expected = names(expected);
        eventually(format_args!("{expected:?}"), || self.names() == expected);
    }

    fn down(&self) -> Vec<IpAddr> {
        self.katran.lock().unwrap().down_reals(self.vip()).unwrap()
    }

    /// Waits for an event whose line contains this.
    fn says(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        while let Ok(event) = self
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let line = event.to_string();
            if line.contains(part) {
                return line;
            }
            said.push(line);
        }
        panic!("not `{part}`, but {said:#?}, {:#?}", self.health().report());
    }

    fn serve(&self, index: usize) -> TcpServer {
        let host = &self.lab.backends[index].host;
        TcpServer::start(host, PORT, format!("backend{index}")).unwrap()
    }
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

/// Probes often, with a long timeout for a busy machine.
fn policy() -> Policy {
    let mut policy = Policy::new(Check::Tcp);
    policy.interval = Duration::from_millis(50);
    policy.timeout = Duration::from_secs(5);
    policy
}

#[test]
fn no_client_reaches_a_real_that_is_dead_at_the_start() {
    let probed = Probed::new(policy());
    let _server = probed.serve(1);
    let changes = probed.health().apply(&probed.wanted([1, 1])).unwrap();
    assert_eq!(changes.vips_added, [probed.vip()]);
    assert!(probed.health().wait(PATIENCE));
    assert_eq!(probed.down(), [probed.real(0)]);
    probed.attach();
    assert_eq!(probed.names(), names(&["backend1"]));
    let line = probed.says("198.51.100.1 is down");
    assert!(line.contains("refused"), "{line}");
    let report = probed.health().report();
    let reals = &report.vips[0].reals;
    assert_eq!(reals[0].status, Status::Down);
    assert!(reals[0].out && reals[0].probed && !reals[1].out);
    assert!(reals[0].history[0].reason.contains("refused"), "{report:?}");
    assert_eq!(report.not_sent, 0, "{report:?}");
    // The operator's weight is unchanged; a real that returns is probed first.
    assert_eq!(reals[0].weight, 1);
    let _first = probed.serve(0);
    probed.until(&["backend0", "backend1"]);
}

/// SYN and RST go through the tunnel; the server's program sees neither.
#[test]
fn half_open_probes_disturb_no_server() {
    let mut half_open = policy();
    half_open.check = Some(Check::Syn);
    let probed = Probed::new(half_open);
    let server = probed.serve(1);
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    assert!(probed.health().wait(PATIENCE));
    assert_eq!(probed.down(), [probed.real(0)]);
    // A busy machine may be late with some.
    eventually("many probes, few of which the server sees", || {
        let passed = probed.health().report().passed;
        passed > 20 && server.accepted() * 4 < passed
    });
}

#[test]
fn reals_come_and_go_and_the_last_ones_stay() {
    let probed = Probed::new(policy());
    let (first, second) = (probed.serve(0), probed.serve(1));
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    probed.attach();
    assert!(probed.health().wait(PATIENCE));
    assert_eq!(probed.names(), names(&["backend0", "backend1"]));
    drop(first);
    probed.says("198.51.100.1 gets no flows");
    probed.until(&["backend1"]);
    // No real answers: the last set stays in use, and the report shows that.
    drop(second);
    probed.says("too few reals answer");
    assert_eq!(probed.down(), [probed.real(0)]);
    assert!(probed.health().report().vips[0].panics);
    let (_first, _second) = (probed.serve(0), probed.serve(1));
    probed.says("enough reals answer again");
    probed.until(&["backend0", "backend1"]);
    // The operator drains a real.
    probed.health().apply(&probed.wanted([0, 1])).unwrap();
    probed.until(&["backend1"]);
    let weights = probed.katran.lock().unwrap().reals(probed.vip()).unwrap();
    assert_eq!(weights[0].get_weight(), 0);
    // A drained real serves if no other does.
    drop(_second);
    probed.says("packets go to drained ones");
    probed.until(&["backend0"]);
    let _second = probed.serve(1);
    probed.says("packets no longer go to drained reals");
    probed.until(&["backend1"]);
}

/// A real that flaps faster than it can rise stays out.
#[test]
fn a_flapping_real_stays_out_until_it_answers_for_long_enough() {
    let mut slow = policy();
    slow.rise = 100;
    let probed = Probed::new(slow);
    let _second = probed.serve(1);
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    probed.attach();
    assert!(probed.health().wait(PATIENCE));
    for _ in 0..5 {
        drop(probed.serve(0));
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(probed.down(), [probed.real(0)]);
    let report = probed.health().report();
    assert_eq!(report.vips[0].reals[0].history.len(), 1, "{report:?}");
}

#[test]
fn a_weight_climbs_under_traffic() {
    let mut climbing = policy();
    climbing.slow_start = Duration::from_secs(4);
    climbing.slow_start_steps = 4;
    let probed = Probed::new(climbing);
    let _second = probed.serve(1);
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    probed.attach();
    assert!(probed.health().wait(PATIENCE));
    let _first = probed.serve(0);
    // `None`: the real has not returned yet. Both are asked at once, as the return changes both.
    let weights = || -> Option<Vec<u32>> {
        let katran = probed.katran.lock().unwrap();
        let reals = katran.reals(probed.vip()).unwrap();
        let is_back = katran.down_reals(probed.vip()).unwrap().is_empty();
        is_back.then(|| reals.iter().map(Real::get_weight).collect())
    };
    let mut seen = Vec::new();
    eventually("the whole weight", || {
        let Some(now) = weights() else {
            return false;
        };
        if seen.last() != Some(&now) {
            seen.push(now.clone());
        }
        now == [1, 1] && seen.len() > 1
    });
    // A busy machine may skip steps, but never goes back.
    let steps = [[1, 4], [2, 4], [3, 4], [1, 1]].map(Vec::from);
    let mut order = steps.iter();
    assert!(
        seen.iter().all(|seen| order.any(|step| step == seen)),
        "{seen:?}"
    );
    probed.until(&["backend0", "backend1"]);
}

/// Marks change, and one hash function allows no ratios: the applied state's policy counts.
#[test]
fn marks_and_hash_function_change_at_once() {
    let mut climbing = policy();
    (climbing.rise, climbing.slow_start) = (1, Duration::from_secs(3600));
    let probed = Probed::new(climbing.clone());
    let _second = probed.serve(1);
    let mut wanted = probed.wanted([1, 1]);
    probed.health().apply(&wanted).unwrap();
    assert!(probed.health().wait(PATIENCE));
    let _first = probed.serve(0);
    eventually("its return", || probed.down().is_empty());
    let state = || probed.katran.lock().unwrap().state();
    let weights = || -> Vec<u32> {
        let state = state();
        let reals = state.vips[0].reals.iter();
        reals.map(Real::get_weight).collect()
    };
    assert_eq!(weights(), [1, 8]);
    let mut settings = Settings::default();
    (settings.tcp, settings.first_mark) = (climbing, 1000);
    probed.health().reconfigure(&wanted, settings).unwrap();
    let passed = probed.health().report().passed;
    probed.health().look();
    eventually("probes by other marks", || {
        probed.health().report().passed > passed + 10
    });
    assert_eq!(probed.health().report().refused, None);
    let marks = state().marks.iter().map(|of| of.mark).collect::<Vec<_>>();
    assert_eq!(marks, [1000, 1001]);
    let balancer = wanted.balancer.get_or_insert_default();
    balancer.hash_function = Some(HashFunction::Maglev);
    probed.health().apply(&wanted).unwrap();
    assert_eq!(weights(), [1, 1]);
}

#[test]
fn probes_that_miss_the_tunnel_count_for_nothing() {
    let probed = Probed::new(policy());
    let (_first, _second) = (probed.serve(0), probed.serve(1));
    let host = &probed.lab.balancers[0].host;
    let vip = probed.lab.vip4();
    // Nothing listens there, so every probe is refused.
    host.ip(&format!("addr add {vip}/32 dev lo")).unwrap();
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    let line = probed.says("probes do not go through the tunnel");
    assert!(line.contains("an address of this host"), "{line}");
    assert!(
        probed.health().wait(PATIENCE),
        "there is nothing to wait for"
    );
    let report = probed.health().report();
    assert!(report.not_sent > 0 && report.failed == 0, "{report:?}");
    assert!(
        report.vips[0]
            .reals
            .iter()
            .all(|real| real.status == Status::Unknown && !real.out)
    );
    host.ip(&format!("addr del {vip}/32 dev lo")).unwrap();
    probed.says("probes go through the tunnel again");
    eventually("both up", || {
        let report = probed.health().report();
        report.vips[0]
            .reals
            .iter()
            .all(|real| real.status == Status::Up)
    });
}

/// Only answers to the checker are lost, not those to clients.
#[test]
fn a_checker_that_is_cut_off_changes_nothing() {
    let mut impatient = policy();
    impatient.timeout = Duration::from_millis(300);
    let probed = Probed::new(impatient);
    let (_first, _second) = (probed.serve(0), probed.serve(1));
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    probed.attach();
    // On a busy machine the first answers may be late.
    eventually("both answer", || {
        let report = probed.health().report();
        let mut reals = report.vips[0].reals.iter();
        reals.all(|real| real.status == Status::Up) && probed.down().is_empty()
    });
    probed
        .lab
        .router
        .ip("route add blackhole 10.0.0.2/32")
        .unwrap();
    let line = probed.says("is down");
    assert!(line.contains("no complete answer within 0.3 s"), "{line}");
    probed.says("too few reals answer");
    assert!(probed.down().is_empty());
    assert_eq!(probed.names(), names(&["backend0", "backend1"]));
    probed
        .lab
        .router
        .ip("route del blackhole 10.0.0.2/32")
        .unwrap();
    probed.says("enough reals answer again");
    assert!(probed.down().is_empty());
}

#[test]
fn concurrent_changes_are_kept_and_the_end_changes_nothing() {
    let mut probed = Probed::new(policy());
    let _second = probed.serve(1);
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    assert!(probed.health().wait(PATIENCE));
    let other: Vip = "203.0.113.1:8080/tcp".parse().unwrap();
    {
        let mut katran = probed.katran.lock().unwrap();
        katran.add_vip(other, katran::VipFlags::empty()).unwrap();
        katran
            .add_real(other, Real::new(probed.real(1)).weight(7))
            .unwrap();
        katran.probes_mut().map_mark(9, probed.real(1)).unwrap();
    }
    probed.health().look();
    eventually("it is probed, too", || {
        let report = probed.health().report();
        report.vips.len() == 2 && report.vips[1].reals[0].status == Status::Down
    });
    let katran = probed.katran.lock().unwrap();
    assert_eq!(katran.reals(other).unwrap()[0].get_weight(), 7);
    let marks = katran.probes().marks();
    assert!(
        marks.contains(&(9, probed.real(1))) && marks.len() == 3,
        "{marks:?}"
    );
    // Dropping the checks does not wait for the lock on the balancer.
    drop(probed.health.take());
    let state = katran.state();
    drop(katran);
    drop(probed.serve(0));
    eventually("no thread", || Arc::weak_count(&probed.katran) == 0);
    assert_eq!(probed.katran.lock().unwrap().state(), state);
    assert_eq!(probed.down(), [probed.real(0)]);
    // New checks continue with earlier results, even before the first probe.
    let mut lazy = Settings::default();
    lazy.tcp.timeout = PATIENCE;
    let host = &probed.lab.balancers[0].host;
    let health = host.run(|| Health::start(&probed.katran, lazy).unwrap());
    assert_eq!(probed.down(), [probed.real(0)]);
    let _first = probed.serve(0);
    eventually("it is up again", || probed.down().is_empty());
    drop(health);
}

#[test]
fn a_mistake_of_the_embedder_ends_the_checks_and_nothing_else() {
    let mut probed = Probed::new(policy());
    let _second = probed.serve(1);
    let host = &probed.lab.balancers[0].host;
    drop(probed.health.take());
    let mut settings = Settings::default();
    settings.tcp = policy();
    let panics = |event: &Event| {
        let is_applied = matches!(event, Event::Applied { .. });
        assert!(!is_applied, "a mistake");
    };
    let health = host.run(|| Health::start_with(&probed.katran, settings, panics).unwrap());
    health.apply(&probed.wanted([1, 1])).unwrap();
    eventually("the end", || health.report().ended.is_some());
    assert!(!health.wait(PATIENCE));
    let ended = health.report().ended.unwrap();
    assert!(ended.contains("a mistake"), "{ended}");
    assert!(!probed.katran.is_poisoned());
    // Results remain for checks that start later.
    assert_eq!(probed.down(), [probed.real(0)]);
    health.apply(&probed.wanted([1, 2])).unwrap();
    assert_eq!(probed.down(), [probed.real(0)]);
    let next = host.run(|| Health::start(&probed.katran, Settings::default()).unwrap());
    next.apply(&probed.wanted([1, 1])).unwrap();
    assert_eq!(probed.down(), [probed.real(0)]);
    // Their thread holds the balancer now and then.
    assert!(next.stop(PATIENCE));
    // The balancer is gone, so changes fail.
    let Probed { katran, .. } = probed;
    drop(katran);
    let error = health.apply(&State::default()).unwrap_err().to_string();
    assert!(error.contains("was dropped"), "{error}");
}

#[test]
fn checks_say_that_their_balancer_is_gone() {
    let mut probed = Probed::new(policy());
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    let health = probed.health.take().unwrap();
    let Probed { katran, .. } = probed;
    assert_eq!(health.report().ended, None);
    drop(katran);
    eventually("the end", || health.report().ended.is_some());
    let ended = health.report().ended.unwrap();
    assert!(ended.contains("the balancer is gone"), "{ended}");
}

/// An unreachable route on this host is its own fault, a router's ICMP error is the real's.
#[test]
fn a_real_that_a_router_calls_unreachable_is_down() {
    let mut direct = policy();
    direct.via = Via::Direct;
    let probed = Probed::new(direct);
    let _servers = [probed.serve(0), probed.serve(1)];
    let balancer = &probed.lab.balancers[0].host;
    balancer.ip("route add unreachable 198.18.0.66/32").unwrap();
    let mut wanted = probed.wanted([1, 1]);
    let unreachable = ["198.18.0.66", "198.18.0.77"].map(|real| real.parse::<IpAddr>().unwrap());
    wanted.vips[0].reals.extend(unreachable.map(Real::new));
    probed.health().apply(&wanted).unwrap();
    let found = |real: IpAddr| {
        let report = probed.health().report();
        let mut reals = report.vips[0].reals.iter();
        reals.find(|of| of.real == real).cloned().unwrap()
    };
    eventually("results of all", || {
        unreachable
            .iter()
            .all(|real| found(*real).last_result.is_some())
    });
    let [own, routers] = unreachable.map(found);
    assert_eq!(own.status, Status::Unknown, "{own:?}");
    assert!(own.last_unsent && own.last_result.unwrap().starts_with("not sent: "));
    probed.says("real 198.18.0.66: probe not sent: ");
    assert!(!routers.last_unsent);
    assert_eq!(routers.status, Status::Down, "{routers:?}");
    let why = routers.last_result.unwrap();
    assert!(why.contains("unreachable"), "{why}");
}

/// New checks take effect, and the reals' health stays known.
#[test]
fn changed_settings_take_effect_at_once() {
    let probed = Probed::new(policy());
    let _second = probed.serve(1);
    let wanted = probed.wanted([1, 1]);
    probed.health().apply(&wanted).unwrap();
    assert!(probed.health().wait(PATIENCE));
    assert_eq!(probed.down(), [probed.real(0)]);
    // Not due for an hour, but for the changed check.
    let mut settings = Settings::default();
    settings.tcp = policy();
    settings.tcp.interval = Duration::from_secs(3600);
    settings.tcp.check = Some(Check::Syn);
    let passed = probed.health().report().passed;
    let changes = probed.health().reconfigure(&wanted, settings).unwrap();
    assert!(changes.is_empty(), "{changes}");
    eventually("a probe", || probed.health().report().passed > passed);
    assert_eq!(probed.down(), [probed.real(0)]);
    let mut settings = Settings::default();
    settings.tcp = Policy::none();
    let changes = probed.health().reconfigure(&wanted, settings).unwrap();
    assert!(!changes.is_empty());
    assert!(probed.down().is_empty());
    let reals = &probed.health().report().vips[0].reals;
    assert!(
        reals
            .iter()
            .all(|of| !of.probed && of.status == Status::Unknown)
    );
}

#[test]
fn a_refusal_changes_nothing() {
    let probed = Probed::new(policy());
    let _second = probed.serve(1);
    probed.health().apply(&probed.wanted([1, 1])).unwrap();
    let mut wrong = probed.wanted([1, 1]);
    wrong
        .marks
        .push(katran::state::MarkState::new(0x6b00_0005, probed.real(0)));
    let error = probed.health().apply(&wrong).unwrap_err().to_string();
    assert!(error.contains("the health checks use it"), "{error}");
    let mut twice = probed.wanted([1, 1]);
    twice.vips.push(twice.vips[0].clone());
    let error = probed.health().apply(&twice).unwrap_err().to_string();
    assert!(error.contains("listed twice"), "{error}");
    let mut settings = Settings::default();
    settings.tcp.rise = 0;
    assert!(
        probed
            .health()
            .reconfigure(&probed.wanted([1, 1]), settings)
            .is_err()
    );
    assert!(probed.health().wait(PATIENCE));
    assert_eq!(probed.health().report().vips.len(), 1);
}

/// A command hangs while the checks' thread waits for the balancer.
#[test]
fn the_end_can_be_waited_for() {
    let mut probed = Probed::new(policy());
    let said = tempfile::NamedTempFile::new().unwrap();
    let script = format!("echo $$ >{}; exec sleep 1000", said.path().display());
    let mut command = Command::new("/bin/sh");
    command.arguments = vec!["-c".to_owned(), script];
    let mut settings = Settings::default();
    settings.tcp = policy();
    let mut hangs = RealPolicy::default();
    (hangs.check, hangs.timeout) = (Some(command.into()), Some(Duration::from_secs(500)));
    settings.tcp.reals.insert(probed.real(0), hangs);
    let wanted = probed.wanted([1, 1]);
    probed.health().reconfigure(&wanted, settings).unwrap();
    let mut leader = String::new();
    eventually("a command", || {
        leader = std::fs::read_to_string(said.path()).unwrap();
        leader.ends_with('\n')
    });
    // A dead process exists until its parent has waited for it.
    let status = format!("/proc/{}", leader.trim());
    let lives = || std::path::Path::new(&status).exists();
    assert!(lives());
    let katran = Arc::clone(&probed.katran);
    let (held, holds) = channel();
    let (stopping, stops) = channel();
    let holder = std::thread::spawn(move || {
        let _katran = katran.lock().unwrap();
        held.send(()).unwrap();
        stops.recv().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
    });
    holds.recv().unwrap();
    // By then the checks have found the other real dead.
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    stopping.send(()).unwrap();
    assert!(probed.health.take().unwrap().stop(PATIENCE));
    assert!(began.elapsed() > Duration::from_secs(1));
    assert!(!lives());
    holder.join().unwrap();
}
