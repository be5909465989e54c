//! The health-check path: a tc program that wraps this host's own probes, each for one real. The
//! application decides what is probed, and what follows from it.
//!
//! Here the program is loaded, attached, and given the interface that probes leave by. `tables.rs`
//! changes the tables that identify probes, whose handles are the rows of `handles.rs`.

mod handles;
mod successor;
mod tables;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use libbpf_rs::skel::OpenSkel;

use handles::Maps;
pub(crate) use handles::MatchBy;
use handles::own;
pub(crate) use tables::Limits;

use crate::attach::Attached;
use crate::attach::Attachments;
use crate::attach::OnInterface;
use crate::attach::Place;
use crate::attach::TcAttachment;
use crate::attach::TcLink;
use crate::attach::TcPlan;
use crate::attach::Witness;
use crate::config::Machine;
use crate::config::prefix_v4;
use crate::config::prefix_v6;
use crate::error::Error;
use crate::error::Result;
use crate::kernel;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::maps::ProbeCells;
use crate::next_hop::Wanted;
use crate::next_hop::Watcher;
use crate::rtnetlink::Requests;
use crate::skel::healthcheck::HealthcheckSkelBuilder;
use crate::skel::katran::types::encapsulation;
use crate::sys::namespace::Namespace;
use crate::sys::object;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::sys::tc::Direction;
use crate::types::Encapsulation;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::TcHook;
use crate::types::Vip;

const NAME: &str = "healthcheck";

/// How to find the ways of probes, which are those of clients' packets.
pub(crate) struct Hops<'a> {
    pub(crate) wanted: Wanted,
    /// Knows the routing rules and tables where the balancer is attached, if next hops are
    /// followed.
    pub(crate) follower: Option<&'a Watcher>,
}

/// The loaded program and its tables.
pub(crate) struct HealthChecks {
    // Declared, and so dropped, before the maps.
    attachments: Attachments<TcLink>,
    interface: Option<String>,
    priority: u16,
    hook: TcHook,
    /// The directory in which attachments are pinned.
    keep_in: Option<PathBuf>,
    limits: Limits,
    /// The interface that probes leave by, and its Ethernet address, while the path is attached.
    way: Option<(u64, u32, MacAddr)>,
    /// In the network namespace that the program is attached in.
    requests: Option<Requests>,
    program: OwnedFd,
    maps: Maps,
    marks: BTreeMap<u32, IpAddr>,
    matches: [BTreeMap<SocketAddr, IpAddr>; 2],
    keys: BTreeMap<Vip, u32>,
    free: BTreeSet<u32>,
}

impl HealthChecks {
    /// Loads the program. Needs no interface and attaches nothing.
    pub(crate) fn load(machine: &Machine<'_>) -> Result<Self> {
        Self::load_over(machine, |_| Ok(None))
    }

    /// Continues with another process's program and maps.
    pub(crate) fn resume(
        machine: &Machine<'_>,
        program: OwnedFd,
        map: impl Fn(&str) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let mut checks = Self::load_over(machine, |name| map(name).map(Some))?;
        checks.program = program;
        Ok(checks)
    }

    /// The same over existing maps.
    pub(crate) fn load_over(
        machine: &Machine<'_>,
        there: impl Fn(&str) -> Result<Option<OwnedFd>>,
    ) -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(HealthcheckSkelBuilder::default(), &mut storage)?;
        let config = machine.config;
        object::size_maps(open.open_object_mut(), |name| machine.size_of(name))
            .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            if map.autocreate()
                && !name.ends_with(".rodata")
                && let Some(fd) = there(&name)?
            {
                numbered(|| map.reuse_fd(fd.as_fd()))
                    .map_err(|error| kernel_error("reuse the map", &name, error))?;
            }
        }
        let constants = constants(NAME, open.maps.rodata_data.as_deref_mut())?;
        constants.encapsulation = match config.encapsulation {
            Encapsulation::Ipip => encapsulation::ENCAPSULATION_IPIP.0,
            Encapsulation::Gue => encapsulation::ENCAPSULATION_GUE.0,
        };
        constants.gue_port = config.gue_port;
        constants.made_up_sources = config.makes_up_probe_sources().into();
        constants.ipip_source_v4 = prefix_v4(config.ipip_source_v4);
        constants.ipip_source_v6 = prefix_v6(config.ipip_source_v6);
        constants.max_packet = config.healthcheck_max_packet;
        constants.next_hops = (config.next_hops != NextHops::Gateway).into();
        let skel = object::load(open, &[NAME]).map_err(|refused| load_error(NAME, refused))?;
        let take_over = || -> std::io::Result<Self> {
            Ok(Self {
                attachments: Attachments::default(),
                interface: config.healthcheck_interface.clone(),
                priority: config.healthcheck_priority,
                hook: config.healthcheck_hook,
                keep_in: None,
                limits: Limits::of(config),
                way: None,
                requests: None,
                program: own(&skel.progs.healthcheck)?,
                maps: Maps::take(&skel.maps, config)?,
                marks: BTreeMap::new(),
                matches: [BTreeMap::new(), BTreeMap::new()],
                keys: BTreeMap::new(),
                free: (0..config.max_vips.into()).collect(),
            })
        };
        let taken = take_over().map_err(|error| kernel_error("open", NAME, error))?;
        taken
            .maps
            .cells
            .set_own_addresses(config.source_v4, config.source_v6);
        Ok(taken)
    }

    /// The program and the maps, by name.
    pub(crate) fn objects(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let program = (NAME, self.program.as_fd());
        self.maps.named().chain([program]).collect()
    }

    /// Pins later attachments in a directory, so that they outlive this.
    pub(crate) fn keep_in(&mut self, directory: &Path) {
        self.keep_in = Some(directory.to_owned());
    }

    /// Continues with an attachment that a pin has kept.
    pub(crate) fn resume_link(&mut self, link: TcLink, mains: &[Place]) {
        let number = link.target().place.namespace;
        self.attachments.resume(link);
        let requests = Namespace::find(number).and_then(|namespace| {
            let namespace = namespace.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            namespace.run(Requests::new)?
        });
        match requests {
            Ok(requests) => self.requests = Some(requests),
            Err(error) => {
                log::warn!("cannot follow the interface through which probes leave: {error}")
            }
        }
        if let Err(error) = self.route(mains) {
            log::warn!(
                "health checks may leave through an interface without the balancer: {error}"
            );
        }
    }

    /// The settings that the program reads, and the ways to reals.
    pub(crate) fn cells(&self) -> &Arc<ProbeCells> {
        &self.maps.cells
    }

    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    pub(crate) fn has_interface(&self) -> bool {
        self.interface.is_some()
    }

    /// Attaches to the configured interface, in the calling thread's network namespace, unless it
    /// is attached. Probes leave by the first of `mains` that exists in that namespace, or else by
    /// that interface.
    pub(crate) fn attach(&mut self, mains: &[Place]) -> Result<()> {
        let Some(own) = self.interface.clone() else {
            return Ok(());
        };
        if self.place().is_some() {
            return self.route(mains);
        }
        let target = self.attachments.check(&own)?;
        let failed = |error| kernel_error("inspect the interface", &own, error);
        let mut requests = Requests::new().map_err(failed)?;
        let way = way_out(&mut requests, mains, target.place, &own)?;
        // First, so that no probe goes another way.
        let before = self.way.replace(way);
        self.tell_way();
        let plan = TcPlan {
            program: self.program.as_fd(),
            name: NAME,
            direction: Direction::Egress,
            priority: self.priority,
            hook: self.hook,
            keep_in: self.keep_in.as_deref(),
        };
        if let Err(error) = self.attachments.attach(&own, plan) {
            self.way = before;
            self.tell_way();
            return Err(error);
        }
        self.requests = Some(requests);
        Ok(())
    }

    /// The same beside another attachment: if the path was lost and cannot be attached again, that
    /// does not prevent the other one.
    pub(crate) fn attach_along(&mut self, mains: &[Place]) -> Result<()> {
        match self.attachments.is_empty() {
            true => self.attach(mains),
            false => self.reattach(mains),
        }
    }

    /// Attaches again if the path was lost and the calling thread's network namespace has its
    /// interface again; and chooses the interface for probes again.
    pub(crate) fn reattach(&mut self, mains: &[Place]) -> Result<()> {
        if self.attachments.lost().is_empty() {
            return self.route(mains);
        }
        match self.attach(mains) {
            Err(Error::NoSuchInterface { .. }) => Ok(()),
            attached => attached,
        }
    }

    /// Chooses the interface for probes again, if the path is attached.
    pub(crate) fn route(&mut self, mains: &[Place]) -> Result<()> {
        let (Some(own), Some(requests), Some(name)) =
            (self.place(), &mut self.requests, &self.interface)
        else {
            return Ok(());
        };
        let way = way_out(requests, mains, own, name)?;
        self.way = Some(way);
        // In any case: the follower may have written another one while this one was gone.
        self.tell_way();
        Ok(())
    }

    /// Detaches it. If you attached the program yourself, its packets then leave where they were
    /// sent.
    pub(crate) fn detach(&mut self) {
        self.attachments.clear();
        self.requests = None;
        if self.way.take().is_some() {
            self.tell_way();
        }
    }

    fn tell_way(&self) {
        self.maps.cells.leave_by(self.way);
    }

    /// The interface that it is attached to, if it exists.
    pub(crate) fn place(&self) -> Option<Place> {
        self.attachments.places().first().copied()
    }

    /// The interface that it is attached to, if it exists, and what reports that on another thread.
    pub(crate) fn witness(&self) -> Option<(Place, std::io::Result<Witness>)> {
        let held = self.attachments.present().next()?;
        Some((held.target().place, held.witness()))
    }

    pub(crate) fn attachment(&self) -> Option<TcAttachment> {
        self.attachments.list().pop()
    }
}

/// The interface that probes leave by, and its Ethernet address: the first of `mains` that exists
/// in the namespace of `own`, else that one, whose name is `name`.
fn way_out(
    requests: &mut Requests,
    mains: &[Place],
    own: Place,
    name: &str,
) -> Result<(u64, u32, MacAddr)> {
    let failed = |error| kernel_error("find the address of", name, error);
    let mains = mains.iter().filter(|main| main.namespace == own.namespace);
    for place in mains.chain([&own]) {
        let Some(interface) = requests.interface(place.index).map_err(failed)? else {
            continue;
        };
        let mac = interface.mac.ok_or_else(|| Error::Unsupported {
            what: format!("probing through {}", interface.name),
            reason: "it has no Ethernet address: choose an interface that has one",
        })?;
        return Ok((own.namespace, place.index, mac));
    }
    Err(Error::NoSuchInterface {
        interface: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MapRow;

    /// A map without a row would keep its placeholder size.
    #[test]
    fn every_map_has_a_row() {
        let mut storage = MaybeUninit::uninit();
        let builder = HealthcheckSkelBuilder::default();
        let mut open = kernel::open(builder, &mut storage).unwrap();
        let maps = open.open_object_mut().maps_mut();
        let names: Vec<_> = maps
            .map(|map| map.name().to_string_lossy().into_owned())
            .filter(|name| !name.ends_with(".rodata"))
            .collect();
        assert!(names.len() >= 8, "{names:?}");
        for name in names {
            assert!(MapRow::of(&name).is_some(), "{name}");
        }
    }
}
