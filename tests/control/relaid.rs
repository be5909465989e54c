//! Adopting a pinned balancer of another layout, as another version of the crate leaves it: a set
//! of this version's replaces it, with all that it knew. The test changes the layout in the words
//! of the map `contents`.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use katran::Error;
use katran::Features;
use katran::FlowTracking;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::Protocol;
use katran::Real;
use katran::Start;
use katran::VipFlags;
use katran::XdpMode;
use katran::flows::Simulation;
use katran::flows::Verdict;
use katran::stats::Counters;
use katran_lab::Host;
use katran_lab::allowed_cpus;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use katran_lab::stay_on;
use log::Level;
use nix::errno::Errno;
use nix::libc;

use crate::adopted::answers;
use crate::adopted::fill;
use crate::adopted::rich;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::MAP_CREATE;
use crate::common::faults::MAP_UPDATE_ELEM;
use crate::common::faults::PROG_LOAD;
use crate::common::faults::judged;
use crate::common::faults::without_call;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::flow_v4;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::layout::COUNTERS;
use crate::common::layout::FLOWS;
use crate::common::layout::LAYOUT;
use crate::common::layout::OTHER;
use crate::common::layout::PROBES;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::load;
use crate::common::logs::heard;
use crate::common::pins;
use crate::common::pins::tree;
use crate::common::serve;
use crate::common::vip;

/// The command of bpf(2) that pins, as in linux/bpf.h.
const OBJ_PIN: u32 = 6;

fn directory() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap().join("katran")
}

/// All counters that do not advance by themselves.
fn counted(of: &Counters) -> impl PartialEq + std::fmt::Debug + use<> {
    let cpus: Vec<_> = of.cpus.iter().map(|cpu| cpu.forwarded).collect();
    (
        of.totals,
        of.vips.clone(),
        of.reals.clone(),
        of.flow_table,
        cpus,
    )
}

/// What can be asked of a balancer.
struct Known {
    state: katran::State,
    numbers: Vec<(std::net::IpAddr, katran::RealNumber)>,
    counters: Counters,
    answers: Vec<Simulation>,
}

impl Known {
    /// Sends packets, which make flow entries, and records everything.
    fn of(katran: &Katran) -> Self {
        answers(katran);
        let answers = answers(katran);
        Self {
            state: katran.state(),
            numbers: katran.real_numbers(),
            counters: katran.counters().unwrap(),
            answers,
        }
    }

    fn assert_same(&self, katran: &Katran, parts: &[usize]) {
        assert_eq!(katran.state(), self.state, "{parts:?}");
        assert_eq!(katran.real_numbers(), self.numbers, "{parts:?}");
        let counters = katran.counters().unwrap();
        let none = builder().load().unwrap().counters().unwrap().totals;
        match parts.contains(&COUNTERS) {
            true => assert_eq!(counters.totals, none, "{parts:?}"),
            false => assert_eq!(counted(&counters), counted(&self.counters), "{parts:?}"),
        }
        match parts.contains(&PROBES) {
            true => {}
            false => assert_eq!(counters.probes, self.counters.probes, "{parts:?}"),
        }
    }
}

fn adopt(directory: &Path) -> Katran {
    let (katran, start) = builder().pin(directory).adopt_or_load().unwrap();
    let Start::Adopted { by_version, .. } = start else {
        panic!("adopt_or_load loaded a new one");
    };
    assert_eq!(by_version, env!("CARGO_PKG_VERSION"));
    katran
}

/// Nothing is lost but the parts that this version cannot read.
#[test]
fn another_layout_is_replaced_and_nothing_is_forgotten() {
    let all = FlowTracking::All;
    let changed = FlowTracking::Changed;
    let kinds: [(FlowTracking, &[&[usize]]); 2] = [
        (
            changed,
            &[&[], &[FLOWS], &[COUNTERS], &[PROBES], &[STATE, COUNTERS]],
        ),
        (all, &[&[STATE], &[STATE, FLOWS, COUNTERS, PROBES]]),
    ];
    for (tracking, kinds) in kinds {
        let directory = directory();
        let mut katran = load(rich(tracking).pin(&directory));
        fill(&mut katran);
        let own = words(&directory.join("set"));
        for parts in kinds {
            let known = Known::of(&katran);
            let pinned = tree(&directory);
            drop(katran);
            relay(&directory.join("set"), parts);
            let told = katran::pinned(&directory).unwrap();
            assert_eq!(told.layout, Some(OTHER));
            let (adopted, heard) = heard(|| adopt(&directory));
            katran = adopted;
            known.assert_same(&katran, parts);
            // One warning for each lost part, and no other.
            let warned = heard.iter().filter(|(level, _)| *level <= Level::Warn);
            assert_eq!(warned.count(), parts.len(), "{parts:?} {heard:?}");
            assert_eq!(tree(&directory), pinned, "{parts:?}");
            assert_eq!(words(&directory.join("set")), own);
            for (before, after) in known.answers.iter().zip(&answers(&katran)) {
                // Tables or the rings' history know the flows that are not where their ring leads.
                match parts.contains(&FLOWS) || parts.contains(&STATE) && tracking == changed {
                    true => assert_eq!(after.real.is_some(), before.real.is_some()),
                    false => assert_eq!(after.real, before.real, "{parts:?} {before:?} {after:?}"),
                }
            }
        }
        // Changes of every kind work, and the next handle knows them.
        let features = Features::default() | Features::SOURCE_ROUTING | Features::INLINE_DECAP;
        katran.reload(features).unwrap();
        serve(&mut katran, "203.0.113.250:1/tcp", VipFlags::empty(), &[A]);
        katran.probes_mut().unmap_mark(9).unwrap();
        katran.remove_vip(vip(VIP4)).unwrap();
        let state = katran.state();
        drop(katran);
        let katran = adopt(&directory);
        assert_eq!(katran.state(), state);
        katran.remove().unwrap();
        assert!(!directory.exists());
    }
}

/// The rings lead elsewhere: connections stay while the tables have the same layout, copied or not.
#[test]
fn connections_that_only_tables_know_stay() {
    // `simulate` uses this CPU's flow table.
    stay_on(allowed_cpus()[0]);
    let directory = directory();
    let mut katran = load(builder().flow_tracking(FlowTracking::All).pin(&directory));
    let tcp = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let known = flows(Protocol::Tcp, "203.0.113.1:443", 200);
    let frames: Vec<_> = known.into_iter().map(frame).collect();
    let reals = |katran: &Katran| -> Vec<_> {
        let ran = frames.iter().map(|frame| katran.simulate(frame));
        ran.map(|ran| ran.unwrap().real.unwrap()).collect()
    };
    let before = reals(&katran);
    katran.add_real(tcp, Real::new(ip(C)).weight(9)).unwrap();
    assert_eq!(reals(&katran), before);
    for parts in [&[][..], &[COUNTERS], &[STATE], &[FLOWS]] {
        drop(katran);
        relay(&directory.join("set"), parts);
        katran = adopt(&directory);
        let after = reals(&katran);
        match parts {
            [FLOWS] => assert!(after.contains(&ip(C)), "{after:?}"),
            _ => assert_eq!(after, before, "{parts:?}"),
        }
    }
    katran.remove().unwrap();
}

/// The same link has the new program.
#[test]
fn links_stay_and_get_the_new_program() {
    let directory = directory();
    let host = Host::new("relaid").unwrap();
    host.ip("link set lo up").unwrap();
    let mut katran = load(builder().next_hops(NextHops::PerReal).pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    host.run(|| katran.attach("lo", XdpMode::Generic)).unwrap();
    let attached = fs::read_dir(directory.join("attached")).unwrap();
    let link = pins::open(&attached.map(|of| of.unwrap().path()).next().unwrap());
    let (id, program) = pins::link(link.as_fd());
    for parts in [&[][..], &[STATE, FLOWS]] {
        drop(katran);
        relay(&directory.join("set"), parts);
        katran = adopt(&directory);
        let now = pins::link(link.as_fd());
        assert_eq!(now, (id, pins::program_id(katran.program_fd())));
        assert_ne!(now.1, program);
        let ran = bpf::run(katran.program_fd(), &syn(flow_v4()));
        assert_eq!(ran.verdict, Verdict::Tx);
        assert_eq!(katran.interfaces().len(), 1);
    }
    pins::eventually_gone(program);
    katran.remove().unwrap();
}

/// A ledger of another layout: the balancer keeps forwarding, and the error says what to do.
#[test]
fn an_unreadable_ledger_is_reported_before_a_handover() {
    let directory = directory();
    let mut katran = load(builder().pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let ledger = pins::open(&directory.join("set/ledger"));
    let page = bpf::lookup(ledger.as_fd(), &[0; 4]).unwrap();
    let mut other = page.clone();
    other[4..8].copy_from_slice(&99_u32.to_ne_bytes());
    let take_over = || {
        let patience = Duration::from_secs(20);
        builder().pin(&directory).take_over(patience).adopt()
    };
    for parts in [None, Some(&[STATE, FLOWS][..])] {
        parts
            .into_iter()
            .for_each(|parts| relay(&directory.join("set"), parts));
        bpf::update(ledger.as_fd(), &[0; 4], &other);
        let pinned = tree(&directory);
        let refused = take_over().unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
        let text = refused.to_string();
        for says in ["layout 99", env!("CARGO_PKG_VERSION"), "remove it"] {
            assert!(text.contains(says), "{text}");
        }
        assert!(!katran.is_handed_over());
        assert_eq!(tree(&directory), pinned);
        bpf::update(ledger.as_fd(), &[0; 4], &page);
    }
    // With a readable ledger it is taken over, whatever the layout of the rest.
    let state = katran.state();
    let new = take_over().unwrap();
    assert!(katran.is_handed_over());
    assert_eq!(new.state(), state);
    drop(katran);
    let program = pins::open(&directory.join("set/programs/program"));
    drop(new);
    bpf::update(
        pins::open(&directory.join("set/ledger")).as_fd(),
        &[0; 4],
        &other,
    );
    let refused = builder().pin(&directory).adopt_or_load().unwrap_err();
    assert!(refused.to_string().contains("layout 99"), "{refused}");
    let ran = bpf::run(program.as_fd(), &syn(flow_v4()));
    assert_eq!(ran.verdict, Verdict::Tx);
    katran::remove(&directory).unwrap();
    assert!(!directory.exists());
}

/// What packets read and write in a set that shares maps with this version's.
#[derive(PartialEq, Debug)]
struct Seen {
    hops: Option<Vec<u8>>,
    live: Vec<u8>,
}

fn seen(directory: &Path) -> Seen {
    let of = |name: &str| {
        let path = directory.join("set/maps").join(name);
        let map = path.exists().then(|| pins::open(&path))?;
        bpf::lookup(map.as_fd(), &[0; 4])
    };
    let mut live = of("data_live").unwrap();
    // Without the last sign of life, which the owner writes.
    live.truncate(live.len() - 8);
    // Without the host's addresses: packets may read either of two copies.
    live.drain(28..72);
    Seen {
        hops: of("data_hops"),
        live,
    }
}

/// Whatever the kernel refuses, the old set keeps working, and the next attempt continues with it.
#[test]
fn one_that_fails_changes_nothing() {
    for (hops, parts) in [
        (NextHops::Gateway, COUNTERS),
        (NextHops::PerReal, COUNTERS),
        (NextHops::Redirect, FLOWS),
    ] {
        let directory = directory();
        let mut katran = load(rich(FlowTracking::Changed).next_hops(hops).pin(&directory));
        fill(&mut katran);
        let known = Known::of(&katran);
        let numbers = katran.real_numbers();
        let pinned = tree(&directory);
        drop(katran);
        relay(&directory.join("set"), &[parts]);
        if let Some(mut cells) = seen(&directory).hops {
            // As if a follower had found these addresses.
            for (_, number) in &numbers {
                let number = number.get() as usize;
                cells[number * 8..][..8].copy_from_slice(&[2, 0, 0, 0, 9, number as u8, 0, 0]);
            }
            let map = pins::open(&directory.join("set/maps/data_hops"));
            bpf::update(map.as_fd(), &[0; 4], &cells);
        }
        let seen_before = seen(&directory);
        let program = pins::open(&directory.join("set/programs/program"));
        let adopt_again = || builder().pin(&directory).adopt().map(drop);
        type Fails<'a> = &'a dyn Fn() -> katran::Result<()>;
        let fails: [(&str, Fails<'_>); 5] = [
            ("pins", &|| {
                without_commands(&[OBJ_PIN], Errno::ENOSPC, adopt_again)
            }),
            ("the exchange", &|| {
                without_call(libc::SYS_renameat2, Errno::EIO, adopt_again)
            }),
            ("elements", &|| {
                without_commands(&[MAP_UPDATE_ELEM], Errno::ENOMEM, adopt_again)
            }),
            ("maps", &|| {
                without_commands(&[MAP_CREATE], Errno::ENOMEM, adopt_again)
            }),
            ("programs", &|| {
                without_commands(&[PROG_LOAD], Errno::EPERM, adopt_again)
            }),
        ];
        for (what, fails) in fails {
            fails().unwrap_err();
            assert_eq!(tree(&directory), pinned, "{what}");
            assert_eq!(words(&directory.join("set"))[LAYOUT], OTHER, "{what}");
            assert!(seen(&directory) == seen_before, "{hops:?}, {what}");
            let ran = bpf::run(program.as_fd(), &syn(flow_v4()));
            assert_eq!(ran.verdict, Verdict::Tx, "{hops:?}, {what}");
        }
        let before = known.counters.totals.total.packets;
        let katran = adopt(&directory);
        match parts {
            COUNTERS => known.assert_same(&katran, &[parts]),
            _ => assert_eq!(
                katran.counters().unwrap().totals.total.packets,
                before + fails.len() as u64
            ),
        }
        katran.remove().unwrap();
    }
}

/// Unknown names are another version's if the set has that version's layout.
#[test]
fn one_of_another_layout_is_removed_whole() {
    let directory = directory();
    drop(load(builder().pin(&directory)));
    let own = |path: &str| pins::pin(pins::array().as_fd(), &directory.join(path));
    own("set/maps/of_tomorrow");
    own("set/of_tomorrow");
    fs::create_dir(directory.join("set/parts_of_tomorrow")).unwrap();
    own("set/parts_of_tomorrow/map");
    relay(&directory.join("set"), &[]);
    katran::remove(&directory).unwrap();
    assert!(!directory.exists());
}

/// A pin is missing that the owner does not need, but its successor would: the owner keeps the
/// balancer.
#[test]
fn an_owner_keeps_a_damaged_balancer() {
    for pin in ["contents", "ledger"] {
        let directory = directory();
        let katran = load(builder().pin(&directory));
        fs::remove_file(directory.join("set").join(pin)).unwrap();
        let patience = Duration::from_secs(20);
        let asked = builder().pin(&directory).take_over(patience).adopt();
        let refused = asked.unwrap_err();
        assert!(
            matches!(refused, Error::NotFound { .. }),
            "{pin}: {refused}"
        );
        assert!(!katran.is_handed_over(), "{pin}");
        drop(katran);
        katran::remove(&directory).unwrap();
    }
}

/// Probes work from the switch on, not only once the gateway is found again.
#[test]
fn probes_know_the_gateway_from_the_switch_on() {
    let directory = directory();
    let katran = load(
        builder()
            .gateway(Gateway::Auto)
            .healthcheck_interface("lo")
            .pin(&directory),
    );
    drop(katran);
    let set = directory.join("set");
    relay(&set, &[PROBES]);
    let found = [2, 0, 0, 0, 9, 9, 0, 0];
    let live = pins::open(&set.join("maps/data_live"));
    let mut words = bpf::lookup(live.as_fd(), &[0; 4]).unwrap();
    words[..8].copy_from_slice(&found);
    bpf::update(live.as_fd(), &[0; 4], &words);
    let mut known = Vec::new();
    let look = || {
        let settings = pins::open(&directory.join("next_set/probes/data_settings"));
        known = bpf::lookup(settings.as_fd(), &[0; 4]).unwrap();
        None
    };
    let katran = judged(libc::SYS_renameat2, None, look, || adopt(&directory));
    assert_eq!(known[..8], found);
    katran.remove().unwrap();
}

/// A host whose gateway answers.
fn with_router(name: &str) -> Host {
    let host = Host::new(name).unwrap();
    for command in [
        "link add near type veth peer name far",
        "link set far up",
        "addr add 192.0.2.2/24 dev near",
        "link set near up",
        "route add default via 192.0.2.9",
        "neigh add 192.0.2.9 lladdr 02:00:00:00:09:09 dev near nud permanent",
    ] {
        host.ip(command).unwrap();
    }
    host
}

/// Otherwise it would have no owner until the router answers.
#[test]
fn a_silent_gateway_does_not_prevent_an_adoption() {
    let directory = directory();
    let host = with_router("relaid-silent");
    let mut katran = load(builder().gateway(Gateway::Auto).pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    host.run(|| katran.attach("near", XdpMode::Generic))
        .unwrap();
    let state = katran.state();
    drop(katran);
    host.ip("neigh del 192.0.2.9 dev near").unwrap();
    relay(&directory.join("set"), &[STATE]);
    let katran = host.run(|| adopt(&directory));
    assert_eq!(katran.state(), state);
    katran.remove().unwrap();
}

/// Whatever the next owner's namespace, the gateway is known before packets use the new program.
#[test]
fn a_gateway_is_found_from_another_network_namespace() {
    let directory = directory();
    let host = with_router("relaid-outside");
    let mut katran = load(builder().gateway(Gateway::Auto).pin(&directory));
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    host.run(|| katran.attach("near", XdpMode::Generic))
        .unwrap();
    for outside in [false, true] {
        drop(katran);
        relay(&directory.join("set"), &[STATE]);
        let mut known = Vec::new();
        let look = || {
            let live = pins::open(&directory.join("next_set/maps/data_live"));
            known = bpf::lookup(live.as_fd(), &[0; 4]).unwrap();
            None
        };
        let from_there = || match outside {
            true => adopt(&directory),
            false => host.run(|| adopt(&directory)),
        };
        katran = judged(libc::SYS_renameat2, None, look, from_there);
        assert_eq!(known[..6], [2, 0, 0, 0, 9, 9], "{outside}");
    }
    katran.remove().unwrap();
}
