//! Changing load-time settings of a running balancer, under traffic: no packet is lost, no flow
//! moves, and the attachments stay the same.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use katran::Builder;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTracking;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::Real;
use katran::RootProgram;
use katran::Vip;
use katran::XdpMode;
use katran::events::MonitorOptions;
use katran::stats::DropReason;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::private_bpf_fs;

use crate::pinned;
use crate::reload::check;
use crate::shared::Pins;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Other sizes for everything that keeps flows, VIPs and reals, and these features.
fn by_state(katran: &mut Katran, features: Features) {
    let mut state = katran.state();
    let settings = state.balancer.as_mut().unwrap();
    let more = |size: &mut Option<u32>| *size = size.map(|size| size + 7);
    more(&mut settings.max_vips);
    more(&mut settings.max_reals);
    let flows = settings.flow_table_size.unwrap();
    settings.flow_table_size = Some(if flows.is_multiple_of(2) {
        flows / 2 + 1
    } else {
        flows * 3 - 1
    });
    settings.features = Some(features);
    let changes = katran.apply(&state).unwrap();
    assert!(
        changes
            .settings_changed
            .starts_with(&["max_vips", "max_reals"])
    );
}

fn sets() -> [Features; 3] {
    let default = Features::default();
    [
        default | Features::SOURCE_ROUTING,
        default | Features::INLINE_DECAP | Features::GLOBAL_FLOW_TABLE,
        default,
    ]
}

fn site(settings: impl FnOnce(Builder) -> Builder) -> Site {
    site::stay_on_one_cpu();
    Site::with(LabConfig::default(), XdpMode::Native, settings)
}

#[test]
fn nothing_is_lost_and_nothing_moves() {
    for tracking in [FlowTracking::Changed, FlowTracking::All] {
        let site = site(|builder| builder.flow_tracking(tracking));
        check(site, &sets(), by_state);
    }
}

#[test]
fn nothing_is_lost_of_a_pinned_one_and_its_link_stays() {
    let pins = Pins::new();
    let site = site(|builder| builder.pin(pinned::directory(&pins)));
    let before = pinned::link_id(&pins);
    check(site, &sets(), |katran, features| {
        by_state(katran, features);
        assert_eq!(katran.features(), features);
    });
    // The handle is dropped, and another one adopts it.
    assert_eq!(pinned::link_id(&pins), before);
    let katran = Katran::builder()
        .pin(pinned::directory(&pins))
        .adopt()
        .unwrap();
    assert!(katran.state().balancer.unwrap().max_vips.unwrap() > 20);
    assert_eq!(pinned::link_id(&pins), before);
    katran.remove().unwrap();
}

#[test]
fn nothing_is_lost_over_gue_in_an_entry_of_a_root_program() {
    let mut site = site(|builder| {
        builder
            .encapsulation(Encapsulation::Gue)
            .source_v4("198.18.0.10".parse().unwrap())
            .source_v6("2001:db8:ffff::10".parse().unwrap())
    });
    let path = private_bpf_fs().unwrap().join("replace");
    site.share(&path);
    check(site, &sets(), by_state);
    RootProgram::remove(&path).unwrap();
}

#[test]
fn nothing_is_lost_with_next_hops_of_reals_and_a_monitor() {
    let site = site(|builder| {
        builder
            .gateway(Gateway::Auto)
            .next_hops(NextHops::PerReal)
            .features(Features::INLINE_DECAP | Features::INTROSPECTION)
    });
    let monitor = site.katran.events().to_list(MonitorOptions::new(), 1);
    let features = site.katran.features();
    check(
        site,
        &[features | Features::SOURCE_ROUTING, features],
        by_state,
    );
    assert_eq!(monitor.unwrap().stop().failure, None);
}

/// Connections that begin while the new flow table does not have all entries of the old one, which
/// cannot be shared.
fn nothing_breaks_that_begins(settings: impl FnOnce(Builder) -> Builder) {
    const CLIENTS: usize = 24;
    const QUESTIONS: usize = 12;
    const ROUNDS: u64 = 10;
    /// Two connections of each client in each round.
    const SERVED: u64 = 500;
    let mut site = site(settings);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, vip.address());
    site.add_service(vip, &reals);
    let stop = AtomicBool::new(false);
    let (served, broken) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let (client, stop) = (&site.lab.client, &stop);
        let (served, broken) = (&served, &broken);
        for _ in 0..CLIENTS {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut connection = site::connect(client, vip);
                    let is_answered = (0..QUESTIONS).all(|_| {
                        thread::sleep(Duration::from_millis(10));
                        connection.ask("who").is_ok()
                    });
                    let of = if is_answered { served } else { broken };
                    of.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..ROUNDS as usize {
            let seen = served.load(Ordering::Relaxed);
            site::eventually("connections come and go", || {
                served.load(Ordering::Relaxed) > seen + SERVED / ROUNDS
            });
            let mut state = site.katran.state();
            let flows = [10_000, 40_000, 60_000][round % 3];
            // After the switch new connections go elsewhere, and all slots are unsettled.
            state.vips[0].reals = (reals.iter().enumerate())
                .map(|(place, real)| {
                    Real::new(*real).weight(u32::from(place == round % reals.len()))
                })
                .collect();
            state.balancer.as_mut().unwrap().flow_table_size = Some(flows + 1 + round as u64);
            let changes = site.katran.apply(&state).unwrap();
            assert_eq!(changes.settings_changed, ["flow_table_size"]);
        }
    });
    let [served, broken] = [&served, &broken].map(|of| of.load(Ordering::Relaxed));
    println!("{served} connections, {broken} broken");
    assert!(
        served > SERVED && broken == 0,
        "{broken} of {served} broken"
    );
    let counters = site.katran.counters().unwrap();
    assert_eq!(counters.drop_reasons.get(DropReason::ProgramMissing), 0);
}

#[test]
fn connections_begun_during_the_copy_survive() {
    nothing_breaks_that_begins(|builder| builder);
}

#[test]
fn connections_begun_during_the_copy_survive_with_all_flows_remembered() {
    nothing_breaks_that_begins(|builder| {
        let features = Features::default() | Features::TCP_SERVER_ID;
        builder.flow_tracking(FlowTracking::All).features(features)
    });
}
