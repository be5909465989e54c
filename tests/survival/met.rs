//! A replacement that was cut off while packets used it, before it took effect: what they did there
//! must not affect anything under the next owner.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::flows::Verdict;
use katran_lab::allowed_cpus;
use katran_lab::stay_on;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::bpf;
use crate::common::faults::PROG_LOAD;
use crate::common::faults::judged;
use crate::common::faults::without_call;
use crate::common::flows;
use crate::common::frames::syn;
use crate::common::layout::COUNTERS;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::layout::write;
use crate::common::pins;
use crate::everywhere::Place;
use crate::model::other_real;
use crate::model::other_vip;
use crate::owner::Job;
use crate::owner::Owned;
use crate::owner::Owner;
use crate::owner::Task;
use crate::owner::builder;
use crate::owner::files;

const FLOWS: u16 = 40;
/// A real of another VIP only.
const OTHER: u8 = 6;
/// Reals without a name.
const NEW: u8 = 18;
const LATER: u8 = 19;

/// To a VIP for which the replacement has another real.
fn frames() -> Vec<Vec<u8>> {
    let vip = other_vip(0);
    let to = format!("{}:{}", vip.address(), vip.port());
    let flows = flows(Protocol::Tcp, &to, FLOWS);
    flows.into_iter().map(syn).collect()
}

/// Replaces it, and ends between the last link's switch and the commit, after connections have
/// arrived.
pub(crate) fn meet(katran: &mut Katran, job: &Job) {
    let mut wanted = katran.state();
    wanted.balancer.as_mut().unwrap().max_vips = Some(43);
    let mut vips = wanted.vips.iter_mut();
    let of = vips.find(|of| of.vip == other_vip(0)).unwrap();
    of.reals = [NEW, OTHER].map(|real| Real::new(other_real(real))).into();
    of.down.clear();
    let before = pins::program_id(katran.program_fd());
    // `simulate` uses this CPU's flow table.
    stay_on(allowed_cpus()[0]);
    let judge = || {
        let program = pins::program(attached(&job.directory));
        assert_ne!(pins::program_id(program.as_fd()), before);
        for frame in frames() {
            assert_eq!(bpf::run(program.as_fd(), &frame).verdict, Verdict::Tx);
        }
        nix::sys::signal::kill(Pid::this(), Signal::SIGKILL).unwrap();
        None
    };
    let applied = judged(libc::SYS_renameat2, None, judge, || katran.apply(&wanted));
    panic!("it is alive: {applied:?}");
}

/// The id of the program on the interface.
fn attached(directory: &Path) -> u32 {
    let entries = fs::read_dir(directory.join("attached")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_xdp = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("xdp")
    };
    let link = pins::open(&paths.find(is_xdp).unwrap());
    pins::link(link.as_fd()).1
}

#[test]
fn numbers_of_a_cut_off_replacement_mean_nothing_later() {
    meets(false);
}

/// Counters wait for the next owner, flows do not.
#[test]
fn nor_if_counters_cannot_be_carried_over() {
    meets(true);
}

/// The replacement was to change the layout, but did not take effect: the next owner has the old
/// version.
#[test]
fn nor_to_the_former_version() {
    for parts in [&[][..], &[COUNTERS], &[STATE]] {
        let (place, job, begun) = met();
        let set = place.directory.join("set");
        let own = words(&set);
        relay(&set, parts);
        let adopt = || place.host.run(|| builder(&job).adopt());
        // Everything but the commit.
        without_call(libc::SYS_renameat2, Errno::EIO, || adopt().unwrap_err());
        assert_eq!(files(&place.directory), begun.pins, "{parts:?}");
        write(&set, &own);
        let mut katran = adopt().unwrap();
        assert_mean_nothing(&mut katran);
        katran.remove().unwrap();
    }
}

/// A balancer whose replacement packets have used, without taking effect.
fn met() -> (Place, Job, Owned) {
    let place = Place::new(false);
    let job = place.job(0, Task::Meet);
    let mut owner = Owner::start(&place.host, &job);
    owner.owns();
    let begun = owner.begins();
    assert_eq!(owner.ended().signal(), Some(Signal::SIGKILL as i32));
    (place, job, begun)
}

/// Connections that arrived on the replacement go where the VIP leads them, and to nothing added
/// later.
fn assert_mean_nothing(katran: &mut Katran) {
    let vip = other_vip(0);
    let known = katran.state().vips.into_iter().find(|of| of.vip == vip);
    let known: Vec<IpAddr> = known.unwrap().reals.iter().map(Real::address).collect();
    let is_known = |real| known.contains(&other_real(real));
    assert!(![NEW, OTHER].into_iter().any(is_known));
    // Drained, so only an entry leads connections there.
    let later = Real::new(other_real(LATER)).weight(0);
    katran.add_real(vip, later).unwrap();
    // `simulate` uses this CPU's flow table.
    stay_on(allowed_cpus()[0]);
    for frame in frames() {
        let real = katran.simulate(&frame).unwrap().real.unwrap();
        assert!(known.contains(&real), "{real} of {known:?}");
    }
}

fn meets(refused: bool) {
    let (place, job, begun) = met();
    let adopt = || place.host.run(|| builder(&job).adopt().unwrap());
    let met = attached(&place.directory);
    let mut refusals = 0;
    // The program that carries counters over is loaded once packets have left the old programs.
    let judge = || {
        let refuses = refused && attached(&place.directory) != met;
        refusals += u32::from(refuses);
        refuses.then_some(Errno::EPERM)
    };
    let mut katran = judged(libc::SYS_bpf, Some(PROG_LOAD), judge, adopt);
    assert_eq!(refusals > 0, refused);
    assert_eq!(files(&place.directory) == begun.pins, !refused);
    let own = pins::program_id(katran.program_fd());
    assert_eq!(attached(&place.directory), own);
    let vip = other_vip(0);
    let counted = |katran: &Katran| katran.stats().vip(vip).unwrap().forwarded.packets;
    let all = u64::from(FLOWS);
    assert_eq!(counted(&katran), if refused { 0 } else { all });
    assert_mean_nothing(&mut katran);
    if refused {
        let simulated = counted(&katran);
        drop(katran);
        katran = adopt();
        assert_eq!(files(&place.directory), begun.pins);
        assert_eq!(counted(&katran), simulated + all);
    }
    katran.remove().unwrap();
}
