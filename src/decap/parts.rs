//! A decapsulator in the kernel: two programs, of which the one for tc is loaded when it is first
//! needed. They share a map of counters and the tries of prefixes.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use libbpf_rs::OpenMapMut;

use super::builder::DecapBuilder;
use crate::error::Result;
use crate::kernel;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::maps::PrefixTrie;
use crate::pins::TC_PROGRAM;
use crate::skel::decap::DecapSkelBuilder;
use crate::skel::decap::types::decap_counters;
use crate::skel::decap_tc::DecapTcSkelBuilder;
use crate::sys::map::PerCpuArray;
use crate::sys::object;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::types::Prefix;

pub(super) const COUNTERS: &str = "decap_counters";
pub(super) const SOURCES: &str = "allowed_sources";
pub(super) const DESTINATIONS: &str = "allowed_destinations";

pub(super) struct Parts {
    pub(super) counters: PerCpuArray<decap_counters>,
    /// The permitted outer sources and inner destinations.
    pub(super) sources: PrefixTrie,
    pub(super) destinations: PrefixTrie,
    pub(super) program: OwnedFd,
    pub(super) tc_program: Option<OwnedFd>,
}

impl Parts {
    /// Loads the programs with new tries, and with new counters or these.
    pub(super) fn load(
        settings: &DecapBuilder,
        counters: Option<BorrowedFd<'_>>,
        with_tc: bool,
    ) -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(DecapSkelBuilder::default(), &mut storage)?;
        write_constants!(
            settings,
            constants("decap", open.maps.rodata_data.as_deref_mut())?
        );
        make_room(&mut open.maps.allowed_sources, &settings.sources)?;
        make_room(&mut open.maps.allowed_destinations, &settings.destinations)?;
        if let Some(counters) = counters {
            share(COUNTERS, &mut open.maps.decap_counters, counters)?;
        }
        let skel =
            object::load(open, &["decap"]).map_err(|refused| load_error("decap", refused))?;
        let take_over = || -> io::Result<_> {
            let own = |of: BorrowedFd<'_>| of.try_clone_to_owned();
            Ok(Self {
                counters: PerCpuArray::new(own(skel.maps.decap_counters.as_fd())?)?,
                sources: PrefixTrie::new(own(skel.maps.allowed_sources.as_fd())?)?,
                destinations: PrefixTrie::new(own(skel.maps.allowed_destinations.as_fd())?)?,
                program: own(skel.progs.decap.as_fd())?,
                tc_program: None,
            })
        };
        let mut parts = take_over().map_err(|error| kernel_error("open", "decap", error))?;
        fill(SOURCES, &parts.sources, &settings.sources)?;
        fill(DESTINATIONS, &parts.destinations, &settings.destinations)?;
        if with_tc {
            parts.tc_program = Some(parts.load_tc(settings)?);
        }
        Ok(parts)
    }

    /// Loads the program for tc, which shares counters and prefixes with the other one.
    pub(super) fn load_tc(&self, settings: &DecapBuilder) -> Result<OwnedFd> {
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(DecapTcSkelBuilder::default(), &mut storage)?;
        write_constants!(
            settings,
            constants(TC_PROGRAM, open.maps.rodata_data.as_deref_mut())?
        );
        let maps = &mut open.maps;
        share(COUNTERS, &mut maps.decap_counters, self.counters.as_fd())?;
        share(SOURCES, &mut maps.allowed_sources, self.sources.as_fd())?;
        let destinations = self.destinations.as_fd();
        share(DESTINATIONS, &mut maps.allowed_destinations, destinations)?;
        let skel =
            object::load(open, &[TC_PROGRAM]).map_err(|refused| load_error(TC_PROGRAM, refused))?;
        let program = skel.progs.decap_tc.as_fd().try_clone_to_owned();
        program.map_err(|error| kernel_error("open", TC_PROGRAM, error))
    }
}

/// Writes settings into the constants of either program: two types made of one declaration.
macro_rules! write_constants {
    ($settings:expr, $constants:expr) => {{
        let (settings, constants) = (&$settings, $constants);
        let strict = settings.destination_v4.is_some() || settings.destination_v6.is_some();
        constants.strict = strict.into();
        let v4 = settings.destination_v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
        constants.destination_v4 = u32::from_ne_bytes(v4.octets());
        let v6 = settings.destination_v6.unwrap_or(Ipv6Addr::UNSPECIFIED);
        constants.destination_v6 = words(v6.octets());
        constants.limit_sources = (!settings.sources.is_empty()).into();
        constants.limit_destinations = (!settings.destinations.is_empty()).into();
        constants.gue_port = settings.gue_port;
        constants.own_server_id = settings.server_id;
    }};
}
use write_constants;

/// Four 32-bit words in memory order.
pub(super) fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|word| {
        let at = word * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}

/// Room for these prefixes; a map cannot have none.
fn make_room(map: &mut OpenMapMut<'_>, prefixes: &BTreeSet<Prefix>) -> Result<()> {
    let entries = u32::try_from(prefixes.len()).unwrap_or(u32::MAX).max(1);
    let sized = map.set_max_entries(entries);
    sized.map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))
}

fn share(name: &'static str, map: &mut OpenMapMut<'_>, with: BorrowedFd<'_>) -> Result<()> {
    let shared = numbered(|| map.reuse_fd(with));
    shared.map_err(|error| kernel_error("share", name, error))
}

fn fill(name: &'static str, trie: &PrefixTrie, prefixes: &BTreeSet<Prefix>) -> Result<()> {
    let prefixes: Vec<Prefix> = prefixes.iter().copied().collect();
    let filled = trie.insert(&prefixes);
    filled.map_err(|error| kernel_error("write prefixes into", name, error))
}
