//! The host application learns of lost attachments, and of no others.

use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::Error;
use katran::Features;
use katran::Katran;
use katran::MacAddr;
use katran::RootProgram;
use katran::XdpMode;
use katran::attachments::AttachedTo;
use katran::attachments::AttachmentChange;
use katran::attachments::AttachmentState;
use katran::attachments::AttachmentWatch;
use katran_lab::private_bpf_fs;

use crate::attach::program;
use crate::diagnose_live::host;
use crate::diagnose_live::pair;
use crate::links::xdp_link;
use crate::site::small;

/// One second, plus what a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(30);

fn load() -> Katran {
    small(MacAddr::new([2, 0, 0, 0, 0, 1])).load().unwrap()
}

fn watch(katran: &Katran) -> (AttachmentWatch, Receiver<AttachmentChange>) {
    let (tell, told) = mpsc::channel();
    let watch = katran
        .events()
        .watch_attachments(move |change| tell.send(change.clone()).unwrap());
    (watch.unwrap(), told)
}

/// Checks the next change: this state, for eth0.
fn next(told: &Receiver<AttachmentChange>, state: AttachmentState) {
    let change = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(change.state, state);
    let AttachedTo::Interface { name, .. } = change.to else {
        panic!("{change:?}");
    };
    assert_eq!(name, "eth0");
}

#[test]
fn a_removed_and_a_recreated_interface_are_reported_at_once() {
    let host = host();
    let mut katran = load();
    host.run(|| katran.attach("eth0", XdpMode::Generic).unwrap());
    let (watch, told) = watch(&katran);
    let (_, id) = program(&host, "eth0").unwrap();
    let [before] = &katran.interfaces()[..] else {
        panic!("{:?}", katran.interfaces());
    };
    assert_eq!((before.own_program, before.program), (Some(id), Some(id)));
    host.ip("link del eth0").unwrap();
    next(&told, AttachmentState::Gone);
    let gone = host.run(|| katran.interfaces());
    assert_eq!((gone[0].own_program, gone[0].program), (Some(id), None));
    pair(&host);
    host.run(|| katran.reattach().unwrap());
    next(&told, AttachmentState::Attached);
    // Detached on purpose is not lost.
    katran.detach("eth0").unwrap();
    drop(watch);
    assert!(told.recv().is_err());
}

#[test]
fn only_foreign_exchanges_of_the_program_are_reported() {
    let host = host();
    let mut katran = load();
    host.run(|| katran.attach("eth0", XdpMode::Generic).unwrap());
    let (_watch, told) = watch(&katran);
    // Other settings make another program.
    let (_, before) = program(&host, "eth0").unwrap();
    let features = Features::default() | Features::INTROSPECTION;
    katran.reload(features).unwrap();
    let (_, own) = program(&host, "eth0").unwrap();
    assert_ne!(own, before);
    assert!(told.recv_timeout(Duration::from_millis(2500)).is_err());
    let index = host.interface_index("eth0").unwrap();
    let link = xdp_link(own, index);
    let other = Decap::builder().load().unwrap();
    let descriptor = other.program_fd().as_raw_fd();
    // SAFETY: takes descriptors of a link and of a program, and no options.
    let failed =
        unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), descriptor, std::ptr::null()) };
    assert_eq!(failed, 0);
    next(&told, AttachmentState::Replaced);
    let there = host.run(|| katran.interfaces());
    assert_eq!(there[0].own_program, Some(own));
    assert_ne!(there[0].program, Some(own));
}

#[test]
fn an_entry_taken_over_by_another_balancer_is_reported() {
    let host = host();
    let pins = private_bpf_fs().unwrap();
    let path = pins.join("root");
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(&path).unwrap();
    let (mut first, mut second) = (load(), load());
    host.run(|| first.attach_shared(&path, 2).unwrap());
    let (_watch, told) = watch(&first);
    host.run(|| second.attach_shared(&path, 2).unwrap());
    let change = told.recv_timeout(PATIENCE).unwrap();
    let entry = AttachedTo::Entry { path, position: 2 };
    assert_eq!(
        (change.to, change.state),
        (entry, AttachmentState::Replaced)
    );
}

#[test]
fn a_callback_that_panics_or_ends_its_watch_is_harmless() {
    let host = host();
    let mut katran = load();
    host.run(|| katran.attach("eth0", XdpMode::Generic).unwrap());
    let (tell, told) = mpsc::channel();
    let panics = katran.events().watch_attachments(move |_| {
        tell.send(()).unwrap();
        panic!("on purpose");
    });
    let (_watch, other) = watch(&katran);
    host.ip("link del eth0").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    next(&other, AttachmentState::Gone);
    // The thread has ended, and its callback with it.
    let began = Instant::now();
    assert!(told.recv_timeout(PATIENCE).is_err());
    assert!(began.elapsed() < PATIENCE);
    drop(panics);
    assert!(!matches!(katran.detach("eth1"), Err(Error::Kernel { .. })));
}
