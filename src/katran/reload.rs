//! Other features for a running balancer: a new program over the same maps replaces the old one
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

/// # Features and reload
impl Katran {
    /// The features that are on.
    pub fn features(&self) -> Features {
        self.config.features
    }

    /// Loads a program with exactly these features and puts it in the old one's place.
    ///
    /// VIPs, reals, rings, flow tables and counters stay, and no packet is lost: each interface
    /// changes from the old program to the new one between two packets. It blocks for one to three
    /// seconds, mostly in the verifier, while the old program runs. The library makes the maps of
    /// features that are switched on, and frees those of features that are switched off.
    ///
    /// Flows stay, unless the feature itself decides where they go. Once TCP server ids, stable UDP
    /// routing or global flows are on, flows go where those lead, and a TCP connection that no
    /// table knows stays on the base of its slot ([`FlowTracking`](crate::FlowTracking)). With TCP
    /// server ids switched off, a flow stays while the flow table knows it. Without local delivery
    /// it goes to its real like any other.
    ///
    /// If you attached [`program_fd`](Self::program_fd) yourself, attach the new one after each
    /// reload; until then the old one runs there. Once you have asked for the descriptor, the
    /// library keeps the old program until the next reload,
    /// [`release_replaced_program`](Self::release_replaced_program) or the end of the balancer.
    ///
    /// # Errors
    /// [`Error::InUse`] if something configured needs a feature to be switched off: source routes,
    /// decap addresses, a monitor, global flows while a VIP has [`VipFlags::GLOBAL_LRU`], server
    /// ids while one has [`VipFlags::UDP_STABLE_ROUTING`]; [`Error::Exhausted`] if more reals are
    /// down than [`mark_down`](Self::mark_down) allows with these features;
    /// [`Error::ForeignProgram`] if another program has replaced the balancer's; [`Error::Kernel`]
    /// if an interface refuses the new one; otherwise as [`Builder::load`](crate::Builder::load).
    /// The old program then keeps running everywhere, and nothing has changed. (If the kernel
    /// refuses to put the old program back on an interface that has the new one already, the log
    /// reports it, and the new one works there until the next reload.)
    ///
    /// ```no_run
    /// use katran::Features;
    ///
    /// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
    /// katran.reload(katran.features() | Features::INTROSPECTION)?;
    /// # Ok(())
    /// # }
    /// ```
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
        // What reports on attachments knows the earlier programs.
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
        // No packet is in the earlier ones.
        self.unstage();
        Ok(())
    }

    /// Loads programs with other features, and makes the maps of new features.
    fn load_anew(&self, config: &Config) -> Result<(Programs, FeatureMaps)> {
        let features = config.features;
        // Maps to be freed exist until the new ones do.
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
                    .map_err(|error| kernel_error("reuse the map", &name, error))?;
            }
        }
        let (programs, skel) = load_object(open, config, &self.fixed, needed)?;
        let made = FeatureMaps::take(&skel.maps, new, tables)
            .map_err(|error| kernel_error("open", "the maps", error))?;
        made.fill(config)?;
        Ok((programs, made))
    }

    /// Replaces the current programs on all interfaces or on none.
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
            // Packets may have been in them, or may still reach them.
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

    /// Frees the program that the last [`reload`](Self::reload) replaced, if the library kept it
    /// because you had asked for [`program_fd`](Self::program_fd); `false` if there is none. Call
    /// it once the new program is attached everywhere: where the old one still runs, frames with
    /// VLAN tags, ICMP and other rare packets, and those of VIPs with flags such as QUIC, are lost
    /// from then on (`XDP_ABORTED`).
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

    /// Frees programs when no packet is in them: such a packet would find no program to continue
    /// in.
    pub(super) fn outlast(&mut self, old: Vec<Programs>) {
        self.maps.rings.retire(None);
        if let Err(error) = self.settle() {
            log::error!("cannot see when packets leave the old programs, so they stay: {error}");
            mem::forget(old);
            return;
        }
        drop(old);
        self.carry_counters();
    }

    /// What is configured that needs features.
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

/// How much of each thing that needs a feature there is.
pub(super) struct Needs {
    pub(super) routes: usize,
    pub(super) ends: usize,
    pub(super) ids: usize,
    /// The union of all VIPs' flags.
    pub(super) flags: VipFlags,
}
