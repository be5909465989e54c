//! Other features for a running balancer: a new program over the same maps, put in the old one's place
//! between two packets.

use std::mem;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libbpf_rs::skel::OpenSkel;

use super::Katran;
use super::change::Left;
use super::change::Prepared;
use super::change::Written;
use super::handles::FeatureMaps;
use super::load::check_memory_for;
use super::load::global_tables;
use super::object::Inner;
use super::object::Programs;
use super::object::load_object;
use super::object::open_object;
use super::object::size_maps;
use super::remember::nothing_else;
use super::remember::settings;
use crate::config::Config;
use crate::config::Features;
use crate::config::Machine;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::types::VipFlags;

impl Katran {
    /// The features that are on.
    pub fn features(&self) -> Features {
        self.config.features
    }

    /// Swaps in a newly loaded program with other features: exactly these are on then.
    ///
    /// VIPs, reals, rings, flow tables and counters stay, and no packet is lost: each interface goes
    /// from the old program to the new one between two packets. It blocks for one to three seconds, most of it for
    /// the verifier, while the old program works on.
    ///
    /// No flow moves, but where it is the feature that decides where it belongs: with TCP server ids,
    /// stable UDP routing or global flows switched on a flow goes where they say, and a TCP connection that no table
    /// knows stays on the base of its slot ([`FlowTracking`](crate::FlowTracking)); with TCP server ids
    /// switched off it stays as long as the flow table knows it, and without local delivery it is sent
    /// to its real like any other.
    ///
    /// An embedder who has attached [`program_fd`](Self::program_fd) by means of its own puts the new
    /// one in its place after this; until then the old one works on there. Whoever has asked for the
    /// descriptor has the old program kept until the next reload, the end of the balancer, or
    /// [`release_replaced_program`](Self::release_replaced_program).
    ///
    /// Maps of features that are switched on are made; those of features that are switched off go.
    ///
    /// # Errors
    /// [`Error::InUse`] if a feature is to be switched off that something configured needs: source
    /// routes, decap addresses, a monitor, global flows while a VIP has
    /// [`VipFlags::GLOBAL_LRU`], server ids while one has [`VipFlags::UDP_STABLE_ROUTING`];
    /// otherwise as [`Builder::load`](crate::Builder::load); [`Error::Exhausted`] if more reals are down than
    /// [`mark_down`](Self::mark_down) allows with these features; [`Error::ForeignProgram`] if somebody has
    /// put another program in the place of ours, and [`Error::Kernel`] if an interface refuses the new
    /// one. In any case the old program works on everywhere, and nothing has
    /// changed. (Should the kernel refuse to put the old one back on an interface that had the new one
    /// already, that is logged: the new one works there until the next reload.)
    #[doc(alias = "reloadBalancerProg")]
    pub fn reload(&mut self, features: Features) -> Result<()> {
        let _call = self.call()?;
        features.check()?;
        let off = self.config.features.difference(features);
        self.check_unused(off, &self.needs())?;
        let config = Config {
            features,
            ..self.config.clone()
        };
        let come = self.come_to_track(features);
        let written = Prepared::plain(settings(&config)).write(self, |katran| {
            let loaded = katran.load_anew(&config)?;
            let down = katran.prepare_all_down(features)?;
            let marked = katran.mark_all(&come);
            if marked.is_err() {
                katran.maps.voids.abandon_all(&down);
            }
            Ok((loaded, down, marked?))
        })?;
        // What says whether attachments are there knows the programs before.
        self.following.take();
        let switched = written.try_switch(self, |katran, ((programs, made), down, marked)| {
            let staged = katran.stage(&programs, &made, features);
            let placed = match staged {
                Ok(()) => katran.put_in_place(programs),
                Err(error) => {
                    katran.outlast(vec![programs]);
                    Err(error)
                }
            };
            let programs = match placed {
                Ok(programs) => programs,
                Err(error) => {
                    katran.maps.voids.abandon_all(&down);
                    katran.undo_marks(marked);
                    return Err(error);
                }
            };
            katran.switch_all_down(down);
            katran.keep_marks(marked);
            let old = mem::replace(&mut katran.programs, programs);
            let old_maps = mem::take(&mut katran.maps.features);
            katran.maps.features = old_maps.with(made, features);
            katran.config = config;
            let mut gone = mem::take(&mut katran.stranded);
            gone.extend(katran.replaced.take());
            match mem::take(katran.handed_out.get_mut()) {
                true => katran.replaced = Some(old),
                false => gone.push(old),
            }
            Ok((Left::Programs(gone), ()))
        });
        self.note_attached();
        let (switched, ()) = switched?;
        switched.end(self);
        // No packet is in those before.
        self.unstage();
        Ok(())
    }

    /// Loads programs with other features, with maps for those that are new.
    fn load_anew(&self, config: &Config) -> Result<(Programs, FeatureMaps)> {
        let features = config.features;
        // Those that go are there until the new ones are.
        let meanwhile = Config {
            features: self.config.features | features,
            ..config.clone()
        };
        let kept = self.config.features.intersection(features);
        let new = features.difference(kept);
        let needed = check_memory_for(&meanwhile, &self.config, self.fixed.possible_cpus.into())?;
        let tables = match new.contains(Features::GLOBAL_FLOW_TABLE) {
            true => global_tables(config)?,
            false => Vec::new(),
        };
        let mut storage = MaybeUninit::uninit();
        let mut open = open_object(&mut storage)?;
        let machine = Machine {
            config,
            cpus: self.fixed.possible_cpus,
        };
        let inner = Inner {
            global: tables.first().map(|(_, table)| table.as_fd()),
            ..Inner::default()
        };
        size_maps(&mut open, &machine, &inner)
            .map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))?;
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let mut named = self.maps.named().into_iter();
            if let Some((_, fd)) = named.find(|(of, _)| *of == name)
                && map.autocreate()
            {
                numbered(|| map.reuse_fd(fd))
                    .map_err(|error| kernel_error("take over the map", &name, error))?;
            }
        }
        let (programs, skel) = load_object(open, config, &self.fixed, needed)?;
        let made = FeatureMaps::take(&skel.maps, new, tables)
            .map_err(|error| kernel_error("take over", "the maps", error))?;
        made.fill(config)?;
        Ok((programs, made))
    }

    /// Puts programs in place of those that are there, on all interfaces or on none.
    pub(super) fn put_in_place(&mut self, programs: Programs) -> Result<Programs> {
        let home = self.home.as_ref();
        let commit = || {
            let committed = home.map_or(Ok(()), |home| home.set().commit_programs());
            committed.map_err(|error| (error, false))
        };
        let swapped = (self.attachments).switch_then(programs.main.as_fd(), || {
            self.shared.switch_then(programs.entry_set(), commit)
        });
        if let Err((error, strays)) = swapped {
            // Packets may have been in them, or still get there.
            match strays {
                true => self.stranded.push(programs),
                false => {
                    self.outlast(vec![programs]);
                    self.unstage();
                }
            }
            return Err(error);
        }
        Ok(programs)
    }

    /// Lets go of the program that the last [`reload`](Self::reload) has replaced, if it was kept because
    /// [`program_fd`](Self::program_fd) had been asked for; `false` if there is none. Call it when the
    /// new one is everywhere in its place: frames with VLAN tags, ICMP and what else is
    /// rare, and those of VIPs with flags such as QUIC, that still meet the old one are lost then (`XDP_ABORTED`).
    pub fn release_replaced_program(&mut self) -> bool {
        let Ok(_call) = self.call() else {
            return false;
        };
        let replaced = self.replaced.take();
        let any = replaced.is_some();
        let left = Left::Programs(replaced.into_iter().collect());
        Written::surely(self, nothing_else)
            .switch(self, |_, ()| left)
            .end(self);
        any
    }

    /// Lets go of programs when no packet is in them: one that was would find no program to go on in.
    pub(super) fn outlast(&mut self, old: Vec<Programs>) {
        self.maps.rings.retire(None);
        if let Err(error) = self.settle() {
            log::error!(
                "the old programs stay, as it cannot be told when they have ended: {error}"
            );
            mem::forget(old);
            return;
        }
        drop(old);
        self.carry_counters();
    }

    /// What is configured now that needs features.
    fn needs(&self) -> Needs {
        let flags = self.table.vips().map(|(_, entry)| entry.flags);
        Needs {
            routes: self.source_routes().count(),
            ends: self.decap.len(),
            ids: self.server_ids.iter().len(),
            flags: flags.fold(VipFlags::empty(), VipFlags::union),
        }
    }

    /// Refuses to switch off what is needed, also by a monitor or by global flows.
    pub(super) fn check_unused(&self, off: Features, needs: &Needs) -> Result<()> {
        let global =
            off.contains(Features::GLOBAL_FLOW_TABLE) && needs.flags.contains(VipFlags::GLOBAL_LRU);
        let users = [
            (
                Features::SOURCE_ROUTING,
                needs.routes != 0,
                "source routes: remove them first",
            ),
            (
                Features::INLINE_DECAP,
                needs.ends != 0,
                "decap addresses: remove them first",
            ),
            (
                Features::GLOBAL_FLOW_TABLE,
                global && self.has_global_flows()?,
                "global flows: remove them, or the flag global-lru of VIPs, first",
            ),
            (
                Features::UDP_STABLE_ROUTING,
                needs.ids != 0 && needs.flags.contains(VipFlags::UDP_STABLE_ROUTING),
                "server ids: remove them, or the flag udp-stable-routing of VIPs, first",
            ),
            (
                Features::INTROSPECTION,
                self.events().is_running(),
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

/// What features are needed for: how much of it there is.
pub(super) struct Needs {
    pub(super) routes: usize,
    /// Decap addresses.
    pub(super) ends: usize,
    /// Server ids.
    pub(super) ids: usize,
    /// All that any VIP has.
    pub(super) flags: VipFlags,
}
