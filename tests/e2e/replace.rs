//! Settings that only a load can change in a running balancer, under traffic: no packet is lost, no flow moves, and the
//! attachments are those of before.

use katran::Builder;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTracking;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::RootProgram;
use katran::XdpMode;
use katran::events::MonitorOptions;
use katran_lab::LabConfig;
use katran_lab::private_bpf_fs;

use crate::pinned;
use crate::reload::check;
use crate::shared::Pins;
use crate::site;
use crate::site::Site;

/// Other sizes of all that flows, VIPs and reals are kept in, and with them other features.
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
    // The handle is gone: another one goes on with it.
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
