//! Next hops of single reals, and their probes' paths, after an adoption: what packets read stays
//! right, and is kept current.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use katran::Katran;
use katran::NextHops;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::VIP4;
use crate::common::ip;
use crate::common::load;
use crate::common::pins;
use crate::common::serve;

/// Two interfaces, each with a router to the reals.
fn host() -> Host {
    let host = Host::new("ways").unwrap();
    for (number, real) in [(1, A), (2, B)] {
        for command in [
            format!("link add near{number} type veth peer name far{number}"),
            format!("link set far{number} up"),
            format!("addr add 192.0.2.{number}/24 dev near{number}"),
            format!("link set near{number} up"),
            format!(
                "neigh add 192.0.2.{number}9 lladdr 02:00:00:00:09:0{number} dev near{number} nud permanent"
            ),
            format!("route add {real}/32 via 192.0.2.{number}9 dev near{number}"),
        ] {
            host.ip(&command).unwrap();
        }
    }
    host
}

fn map(directory: &Path, name: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    bpf::dump(pins::open(&directory.join("set").join(name)).as_fd())
}

/// Each real's port, and the interface that packets leave by through it.
fn ports(directory: &Path, katran: &Katran) -> Vec<(u16, u32)> {
    let of_hops = pins::open(&directory.join("set/maps/data_hops"));
    let read = || bpf::lookup(of_hops.as_fd(), &[0; 4]).unwrap();
    // Once a hop has another port, the former one's interface may be forgotten.
    let (hops, devices) = loop {
        let (before, devices) = (read(), map(directory, "maps/devices"));
        if read() == before {
            break (before, devices);
        }
    };
    let numbers = katran.real_numbers().into_iter();
    let ports = numbers.map(|(_, number)| {
        let word = &hops[number.get() as usize * 8..][..8];
        let port = u16::from_le_bytes([word[6], word[7]]);
        let device = devices.get(&u32::from(port).to_ne_bytes()[..]);
        let device = device.map_or(0, |of| u32::from_ne_bytes(of[..4].try_into().unwrap()));
        (port, device)
    });
    ports.collect()
}

/// A number that packets may still use keeps its interface until none does.
#[test]
fn the_former_owners_ports_keep_their_meaning() {
    require_root();
    let host = host();
    let directory = private_bpf_fs().unwrap().join("katran");
    let settings = || builder().next_hops(NextHops::Redirect).pin(&directory);
    let mut katran = load(settings());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let attach = || katran.attach("near1", XdpMode::Generic).map(drop);
    host.run(attach).unwrap();
    let devices = [1, 2].map(|of| host.interface_index(&format!("near{of}")).unwrap());
    let is_whole = |ports: &[(u16, u32)]| {
        let found: Vec<u32> = ports.iter().map(|(_, device)| *device).collect();
        found == devices
    };
    eventually("hops are known", || is_whole(&ports(&directory, &katran)));
    for round in 0..40 {
        let before = ports(&directory, &katran);
        let numbers: BTreeSet<u16> = before.iter().map(|(port, _)| *port).collect();
        drop(katran);
        katran = host.run(|| settings().adopt().unwrap());
        eventually("new ports lead there", || {
            let now = ports(&directory, &katran);
            assert!(is_whole(&now), "{round}: {before:?} {now:?}");
            now.iter().all(|(port, _)| !numbers.contains(port))
        });
    }
    katran.remove().unwrap();
}

/// Routes change after the process that followed them is gone.
#[test]
fn the_next_owner_follows_probes_paths() {
    require_root();
    let host = host();
    let directory = private_bpf_fs().unwrap().join("katran");
    let settings = builder()
        .next_hops(NextHops::Redirect)
        .source_v4([192, 0, 2, 1].into())
        .healthcheck_interface("near1");
    let settings = || settings.clone().pin(&directory);
    let mut katran = load(settings());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    host.run(|| {
        katran.attach("near1", XdpMode::Generic).unwrap();
        katran.probes_mut().map_mark(9, ip(A)).unwrap();
    });
    let devices = [1, 2].map(|of| host.interface_index(&format!("near{of}")).unwrap());
    let ways = || -> Vec<u32> {
        let ways = map(&directory, "probes/ways").into_values();
        ways.map(|of| u32::from_ne_bytes(of[..4].try_into().unwrap()))
            .collect()
    };
    eventually("it is known", || ways() == [devices[0]]);
    drop(katran);
    let mut katran = host.run(|| settings().adopt().unwrap());
    assert_eq!(ways(), [devices[0]]);
    let route = format!("route replace {A}/32 via 192.0.2.29 dev near2");
    host.ip(&route).unwrap();
    eventually("it has changed", || ways() == [devices[1]]);
    // A second mark shares the path; removing it leaves the first one's.
    host.run(|| katran.probes_mut().map_mark(10, ip(A)).unwrap());
    katran.probes_mut().unmap_mark(10).unwrap();
    assert_eq!(ways(), [devices[1]]);
    katran.probes_mut().unmap_mark(9).unwrap();
    assert!(ways().is_empty());
    katran.remove().unwrap();
}
