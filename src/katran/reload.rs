//! Other features for a running balancer: a new program over the same maps, put in the old one's place
//! between two packets.

use std::mem;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libbpf_rs::skel::OpenSkel;

use super::Katran;
use super::load::Programs;
use super::load::check_memory_for;
use super::load::global_tables;
use super::object::load_object;
use super::object::open_object;
use super::object::size_feature_maps;
use super::object::size_sections;
use super::object::take_feature_maps;
use crate::Error;
use crate::Features;
use crate::Result;
use crate::config::Config;
use crate::maps::FeatureMaps;
use crate::maps::kernel_error;
use crate::sys::object::into_io;

impl Katran {
    /// The features that are on.
    pub fn features(&self) -> Features {
        self.config.features
    }

    /// Swaps in a newly loaded program with other features: exactly these are on then.
    ///
    /// VIPs, reals, rings, flow tables and counters stay. No packet is lost and no flow moves: each
    /// interface goes from the old program to the new one between two packets. It takes a second or
    /// two, most of it for the verifier, while the old program works on. Other descriptors of
    /// [`program_fd`](Self::program_fd), made before, are of the old program.
    ///
    /// Maps of features that are switched on are made; those of features that are switched off go.
    ///
    /// # Errors
    /// [`Error::InUse`] if a feature is to be switched off that something configured needs;
    /// otherwise as [`Builder::load`](crate::Builder::load), and [`Error::Kernel`] if an interface
    /// refuses the new program. In any case the old program works on everywhere, and nothing has
    /// changed.
    #[doc(alias = "reloadBalancerProg")]
    pub fn reload(&mut self, features: Features) -> Result<()> {
        features.check()?;
        let off = self.config.features.difference(features);
        self.check_unused(off, self.source_route_count(), self.decap.len())?;
        let config = Config {
            features,
            ..self.config.clone()
        };
        let kept = self.config.features.intersection(features);
        let new = features.difference(kept);
        let needed = check_memory_for(&config, &self.config, self.fixed.possible_cpus.into())?;
        let tables = match new.contains(Features::GLOBAL_FLOW_TABLE) {
            true => global_tables(&config)?,
            false => Vec::new(),
        };
        let mut storage = MaybeUninit::uninit();
        let mut open = open_object(&mut storage)?;
        size_sections(&mut open, &config)
            .and_then(|()| size_feature_maps(&mut open, &config, &self.fixed, &tables, kept))
            .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let mut named = self.maps.named().into_iter();
            if let Some((_, fd)) = named.find(|(of, _)| *of == name)
                && map.autocreate()
            {
                map.reuse_fd(fd)
                    .map_err(|error| kernel_error("take over the map", &name, into_io(error)))?;
            }
        }
        let (programs, skel) = load_object(open, &config, &self.fixed, needed)?;
        let made = take_feature_maps(&skel.maps, new, tables)
            .map_err(|error| kernel_error("take over", "the maps", error))?;
        made.fill()?;

        let (after, before) = (programs.main.as_fd(), self.programs.main.as_fd());
        self.attachments.replace(after, before)?;
        if let Err(error) = self.shared.replace(programs.entry_set()) {
            // Back, where they were a moment ago.
            self.attachments.replace(before, after)?;
            return Err(error);
        }
        let old = mem::replace(&mut self.programs, programs);
        let old_maps = mem::take(&mut self.maps.features);
        self.maps.features = old_maps.with(made, features);
        self.config = config;
        self.outlast(old);
        Ok(())
    }

    /// Lets go of programs when no packet is in them: one that was would find no program to go on in.
    fn outlast(&mut self, old: Programs) {
        self.maps.rings.retire(None);
        if let Err(error) = self.settle() {
            log::error!(
                "the old programs stay, as it cannot be told when they have ended: {error}"
            );
            mem::forget(old);
        }
    }

    /// Refuses to switch off what so many source routes and decap addresses need, or a monitor.
    pub(super) fn check_unused(&self, off: Features, routes: usize, ends: usize) -> Result<()> {
        let users = [
            (
                Features::SOURCE_ROUTING,
                routes != 0,
                "source routes: remove them first",
            ),
            (
                Features::INLINE_DECAP,
                ends != 0,
                "decap addresses: remove them first",
            ),
            (
                Features::INTROSPECTION,
                self.is_monitored(),
                "a monitor: stop it first",
            ),
        ];
        let user = users
            .into_iter()
            .find(|(feature, used, _)| *used && off.contains(*feature));
        match user {
            None => Ok(()),
            Some((feature, _, by)) => Err(Error::InUse {
                what: format!("feature {feature}"),
                by,
            }),
        }
    }
}

impl FeatureMaps {
    /// These and those that are new, as far as `features` have them.
    fn with(self, new: Self, features: Features) -> Self {
        fn kept<T>(old: Option<T>, new: Option<T>, on: bool) -> Option<T> {
            new.or(old).filter(|_| on)
        }
        let on = |feature| features.contains(feature);
        Self {
            source_routes: kept(
                self.source_routes,
                new.source_routes,
                on(Features::SOURCE_ROUTING),
            ),
            global_flows: kept(
                self.global_flows,
                new.global_flows,
                on(Features::GLOBAL_FLOW_TABLE),
            ),
            decap_destinations: kept(
                self.decap_destinations,
                new.decap_destinations,
                on(Features::INLINE_DECAP),
            ),
            events: kept(self.events, new.events, on(Features::INTROSPECTION)),
        }
    }
}
