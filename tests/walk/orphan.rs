//! A limit for the owner's silence: after it everything passes untouched until there is a sign of
//! life.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use katran::Error;
use katran::Features;
use katran::State;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_model::End;
use nix::time::ClockId;

use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::A6;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::frames::echo;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::mirror;
use crate::common::serve;
use crate::common::vip;
use crate::common::wire::ipip;

const LIMIT: Duration = Duration::from_secs(60);
const ZERO: [u8; 4] = [0; 4];

/// The owner's last sign of life: the section's last word.
fn alive(live: impl AsFd) -> u64 {
    let section = bpf::lookup(live.as_fd(), &ZERO).unwrap();
    let (_, word) = section.split_last_chunk().unwrap();
    u64::from_ne_bytes(*word)
}

fn set_alive(live: impl AsFd, ticks: u64) {
    let mut section = bpf::lookup(live.as_fd(), &ZERO).unwrap();
    *section.last_chunk_mut().unwrap() = ticks.to_ne_bytes();
    bpf::update(live.as_fd(), &ZERO, &section);
}

fn in_ticks(time: Duration) -> u64 {
    let tick = Duration::from(ClockId::CLOCK_MONOTONIC_COARSE.res().unwrap());
    (time.as_nanos() / tick.as_nanos()) as u64
}

#[test]
fn everything_passes_until_an_owner_gives_a_sign_of_life() {
    let directory = private_bpf_fs().unwrap().join("katran");
    let features = Features::default() | Features::INLINE_DECAP;
    let settings = builder().features(features).orphan_limit(LIMIT);
    let mut katran = load(settings.pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A6]);
    let end = ip("10.0.0.9");
    katran
        .decap_mut()
        .add(end, katran::DecapMode::Inline)
        .unwrap();
    let (v4, v6) = (frame(flow_v4()), frame(flow_v6()));
    let mut tagged = v4.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let mut group = v4.clone();
    group[0] |= 1;
    let mut wrong = v4.clone();
    wrong[16] = 0xff;
    let tunnel = ipip(&v4, Some(flow_v4().source.ip()), 1, end);
    let ping = echo(ip("192.0.2.7"), flow_v4().destination.ip(), b"who");
    // The verdict of each while there is an owner.
    let cases = [
        (syn(flow_v4()), Verdict::Tx),
        (v4, Verdict::Tx),
        (v6, Verdict::Tx),
        (tagged, Verdict::Tx),
        (tunnel, Verdict::Tx),
        (ping, Verdict::Tx),
        (wrong, Verdict::Drop),
        (group, Verdict::Pass),
    ];
    let program = katran.program_fd().try_clone_to_owned().unwrap();
    let live = katran.map_fd(".data.live").unwrap();
    let live = live.try_clone_to_owned().unwrap();
    let model = |orphaned| {
        let mut model = mirror::of(&katran, 0);
        model.config.orphaned = orphaned;
        model
    };
    let mut models = [model(false), model(true)];
    let all = |is_orphan: bool, models: &mut [katran_model::Balancer; 2]| {
        for (frame, verdict) in &cases {
            let ran = bpf::run(program.as_fd(), frame);
            let expected = models[usize::from(is_orphan)].walk(frame, 0).end;
            let expected = match expected {
                End::Tx(_) | End::Redirect(_) => Verdict::Tx,
                End::Pass(_) => Verdict::Pass,
                End::Drop(_) => Verdict::Drop,
            };
            assert_eq!(ran.verdict, expected, "{frame:02x?}");
            match is_orphan {
                true => assert_eq!((ran.verdict, &ran.frame), (Verdict::Pass, frame)),
                false => assert_eq!(ran.verdict, *verdict, "{frame:02x?}"),
            }
        }
    };
    all(false, &mut models);
    // The owner's thread may renew its sign of life at any time.
    eventually("it says why", || {
        set_alive(&live, alive(&live) - in_ticks(2 * LIMIT));
        let ran = katran.simulate(&cases[0].0).unwrap();
        (ran.verdict, ran.reason) == (Verdict::Pass, Reason::Orphan)
    });
    let simulated = katran.counters().unwrap().orphan.passed;
    assert!(simulated > 0);
    // Each change is a sign of life, too.
    set_alive(&live, 0);
    katran.clear_down(vip(VIP4)).unwrap();
    assert!(alive(&live) > 0);
    drop(katran);

    let now = alive(&live);
    let second = in_ticks(Duration::from_secs(1));
    for (alive, is_orphan) in [
        (now, false),
        (now - in_ticks(LIMIT) + 30 * second, false),
        (now - in_ticks(LIMIT) - second, true),
        // 32 bits of ticks later, and more.
        (now - (1 << 32), true),
        (0, true),
        (now + second, false),
    ] {
        set_alive(&live, alive);
        all(is_orphan, &mut models);
    }
    set_alive(&live, 0);
    all(true, &mut models);
    // The next owner gives signs of life.
    let katran = builder().pin(&directory).adopt().unwrap();
    all(false, &mut models);
    assert_eq!(katran.state().balancer.unwrap().orphan_limit, Some(LIMIT));
    let passed = 4 * cases.len() as u64 + simulated;
    assert_eq!(katran.counters().unwrap().orphan.passed, passed);
    assert_eq!(katran.stats().orphan().unwrap().passed, passed);
    katran.remove().unwrap();
}

#[test]
fn a_limit_is_for_pinned_balancers() {
    for (settings, words) in [
        (builder().orphan_limit(LIMIT), "pin it"),
        (
            builder().orphan_limit(Duration::from_secs(4)),
            "5 seconds to 1 day",
        ),
        (
            builder().orphan_limit(Duration::from_secs(86_401)),
            "5 seconds to 1 day",
        ),
    ] {
        let refused = settings.load().unwrap_err();
        assert!(matches!(refused, Error::InvalidConfig { .. }), "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains("orphan_limit") && text.contains(words),
            "{text}"
        );
    }
    let text = "[balancer]\ngateway_mac = \"0a:00:00:00:00:fe\"\norphan_limit = 60\n";
    let state = State::from_toml(text).unwrap();
    let directory = private_bpf_fs().unwrap().join("katran");
    let katran = load(state.builder().unwrap().pin(directory));
    let told = katran.state().balancer.unwrap().orphan_limit;
    assert_eq!(told, Some(Duration::from_secs(60)));
    katran.remove().unwrap();
}

/// The owner's signs reach the maps that packets read, also after a replacement.
#[test]
fn a_replacement_has_the_same_owner() {
    let directory = private_bpf_fs().unwrap().join("katran");
    let mut katran = load(builder().orphan_limit(LIMIT).pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let owned = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let handed_out = owned(katran.program_fd());
    let live_of_handed_out = owned(katran.map_fd(".data.live").unwrap());
    let mut state = katran.state();
    state.balancer.as_mut().unwrap().max_vips = Some(32);
    katran.apply(&state).unwrap();
    // A program handed out before still has an owner, until its successor is attached.
    let before = alive(&live_of_handed_out);
    eventually("its thread gives signs there", || {
        alive(&live_of_handed_out) > before
    });
    let ran = bpf::run(handed_out.as_fd(), &frame(flow_v4()));
    assert_eq!(ran.verdict, Verdict::Tx);
    let live = katran.map_fd(".data.live").unwrap();
    let live = live.try_clone_to_owned().unwrap();
    let before = alive(&live);
    assert!(before > 0);
    eventually("its thread gives signs", || alive(&live) > before);
    let ran = katran.simulate(&syn(flow_v4())).unwrap();
    assert_eq!(ran.verdict, Verdict::Tx);
    // A take-over works after a replacement, too.
    let next = builder().pin(&directory).take_over(4 * LIMIT);
    let next = next.adopt().unwrap();
    let refused = katran.remove_vip(vip(VIP4)).unwrap_err();
    assert!(matches!(refused, Error::HandedOver { .. }), "{refused}");
    next.remove().unwrap();

    // An unpinned balancer cannot get a limit.
    let mut katran = load(builder());
    let mut state = katran.state();
    state.balancer.as_mut().unwrap().orphan_limit = Some(LIMIT);
    let refused = katran.apply(&state).unwrap_err().to_string();
    assert!(refused.contains("pin it"), "{refused}");
}
