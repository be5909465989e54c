//! Every kind of change, drawn at random from what is possible: the call, and its effect on the
//! model.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::Path;

use fastrand::Rng;
use katran::DecapMode;
use katran::Features;
use katran::Gateway;
use katran::HashFunction;
use katran::Katran;
use katran::MacAddr;
use katran::RealChange;
use katran::RealFlags;
use katran::Result;
use katran::ServerId;
use katran::SourceRoute;
use katran::VipFlags;
use katran::XdpMode;
use katran::state::DecapState;
use katran::state::MarkState;
use katran::state::ProbeMatch;
use katran::state::ProbeMatchState;
use katran::state::ServerIdState;
use katran::state::VipState;

use crate::common::vip;
use crate::model::Model;
use crate::model::SERVICES;
use crate::model::features;
use crate::model::is_service;
use crate::model::other_real;
use crate::model::other_vip;

/// A change about to be made.
pub(crate) struct Change {
    pub(crate) after: Model,
    pub(crate) call: Box<Call>,
}

type Call = dyn FnOnce(&mut Katran) -> Result<()>;

/// What changes are drawn from.
pub(crate) struct Draw<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) model: &'a Model,
    /// The path of a pinned root program.
    pub(crate) shared: &'a Path,
}

/// `None`: no such change is possible.
type Kind = fn(&mut Draw<'_>) -> Option<Change>;

impl Draw<'_> {
    fn one<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.rng.usize(..of.len())].clone())
    }

    /// A VIP that is not a service.
    fn vip(&mut self, is: impl Fn(&VipState) -> bool) -> Option<VipState> {
        let vips = self.model.state.vips.iter();
        let vips: Vec<_> = vips
            .filter(|of| !is_service(of.vip) && is(of))
            .cloned()
            .collect();
        self.one(&vips)
    }

    fn real(&mut self) -> IpAddr {
        other_real(self.rng.u8(1..20))
    }

    /// At least one of them; `None` if there is none.
    fn some<T: Clone>(&mut self, of: &[T]) -> Option<Vec<T>> {
        let first = self.one(of)?;
        let mut some = vec![first];
        some.extend(of.iter().filter(|_| self.rng.u8(0..4) == 0).cloned());
        Some(some)
    }

    fn change(
        &self,
        make: impl FnOnce(&mut Model),
        call: impl FnOnce(&mut Katran) -> Result<()> + 'static,
    ) -> Option<Change> {
        let mut after = self.model.clone();
        make(&mut after);
        Some(Change {
            after,
            call: Box::new(call),
        })
    }

    /// A change by applying a state, which combines several other kinds.
    fn apply(&self, make: impl FnOnce(&mut Model)) -> Option<Change> {
        let mut after = self.model.clone();
        make(&mut after);
        let wanted = after.state.clone();
        Some(Change {
            after,
            call: Box::new(move |katran| katran.apply(&wanted).map(drop)),
        })
    }
}

/// All kinds. Only those in [`DISTURBING`] disturb the services' clients.
pub(crate) const KINDS: [(&str, Kind); 41] = [
    ("add a VIP", |draw| {
        let vip = other_vip(draw.rng.u8(0..12));
        let flags = draw.one(&[VipFlags::empty(), VipFlags::NO_SRC_PORT])?;
        if draw.model.state.vips.iter().any(|of| of.vip == vip) {
            return None;
        }
        draw.change(
            |model| {
                let mut new = VipState::new(vip);
                (new.flags, new.hash) = (flags, Some(HashFunction::default()));
                model.state.vips.push(new);
            },
            move |katran| katran.add_vip(vip, flags),
        )
    }),
    ("remove a VIP", |draw| {
        let vip = draw.vip(|_| draw.model.state.vips.len() > 5)?.vip;
        draw.change(
            |model| {
                model.state.vips.retain(|of| of.vip != vip);
                model.watched = model.watched.filter(|of| *of != vip);
            },
            move |katran| katran.remove_vip(vip),
        )
    }),
    ("add a real", |draw| {
        let (vip, real) = (draw.vip(|of| of.reals.len() < 6)?.vip, draw.real());
        let weight = draw.rng.u32(1..5);
        draw.change(
            |model| model.put(vip, real, weight),
            move |katran| katran.add_real(vip, katran::Real::new(real).weight(weight)),
        )
    }),
    ("remove a real", |draw| {
        let of = draw.vip(|of| !of.reals.is_empty())?;
        let real = draw.one(&of.reals)?.address();
        draw.change(
            |model| remove_real(model.vip_mut(of.vip), real),
            move |katran| katran.remove_real(of.vip, real),
        )
    }),
    ("drain", |draw| {
        let of = draw.vip(|of| of.reals.iter().any(|real| real.get_weight() != 0))?;
        let mut reals = of.reals.iter();
        let real = reals.find(|real| real.get_weight() != 0)?.address();
        draw.change(
            |model| model.put(of.vip, real, 0),
            move |katran| katran.add_real(of.vip, katran::Real::new(real).weight(0)),
        )
    }),
    ("weights of a service", |draw| {
        let (service, reals) = draw.one(&SERVICES)?;
        let (service, weights) = (vip(service), [draw.rng.u32(1..5), draw.rng.u32(0..5)]);
        let turned = draw.rng.usize(..2);
        let changes: Vec<_> = (0..2)
            .map(|nth| (crate::common::ip(reals[nth]), weights[(nth + turned) % 2]))
            .collect();
        draw.change(
            |model| {
                for (real, weight) in &changes {
                    model.put(service, *real, *weight);
                }
            },
            {
                let changes = changes.clone();
                move |katran| {
                    let changes = changes.into_iter();
                    let changes: Vec<_> = changes
                        .map(|(real, weight)| {
                            RealChange::Add(katran::Real::new(real).weight(weight))
                        })
                        .collect();
                    katran.modify_reals(service, &changes)
                }
            },
        )
    }),
    ("modify reals", |draw| {
        let of = draw.vip(|of| of.reals.len() > 1)?;
        let gone = draw.one(&of.reals)?.address();
        let new: Vec<IpAddr> = (0..3).map(|_| draw.real()).collect();
        let new: Vec<IpAddr> = new.into_iter().filter(|real| *real != gone).collect();
        let changes: Vec<_> = [RealChange::Remove(gone)]
            .into_iter()
            .chain(
                new.iter()
                    .map(|real| RealChange::Add(katran::Real::new(*real).weight(2))),
            )
            .collect();
        draw.change(
            |model| {
                // Reals that stay, or are named elsewhere, keep their flags.
                for real in new {
                    model.put(of.vip, real, 2);
                }
                remove_real(model.vip_mut(of.vip), gone);
            },
            move |katran| katran.modify_reals(of.vip, &changes),
        )
    }),
    ("mark down", |draw| {
        let of = draw.vip(|of| of.reals.len() > of.down.len())?;
        let mut up = of
            .reals
            .iter()
            .filter(|real| !of.down.contains(&real.address()));
        let real = up.next()?.address();
        draw.change(
            |model| model.vip_mut(of.vip).down.push(real),
            move |katran| katran.mark_down(of.vip, real),
        )
    }),
    ("mark up", |draw| {
        let of = draw.vip(|of| !of.down.is_empty())?;
        let real = draw.one(&of.down)?;
        draw.change(
            |model| model.vip_mut(of.vip).down.retain(|down| *down != real),
            move |katran| katran.mark_up(of.vip, real),
        )
    }),
    ("clear down", |draw| {
        let of = draw.vip(|of| !of.down.is_empty())?;
        draw.change(
            |model| model.vip_mut(of.vip).down.clear(),
            move |katran| katran.clear_down(of.vip),
        )
    }),
    ("flags of a VIP", |draw| {
        let vip = draw.vip(|_| true)?.vip;
        let flags = draw.one(&[
            VipFlags::empty(),
            VipFlags::NO_SRC_PORT,
            VipFlags::DPORT_HASH,
            VipFlags::SRC_ROUTING,
        ])?;
        draw.change(
            |model| model.vip_mut(vip).flags = flags,
            move |katran| katran.set_vip_flags(vip, flags),
        )
    }),
    ("flags of a real", |draw| {
        // A real that only VIPs name.
        let named: Vec<IpAddr> = draw
            .model
            .state
            .vips
            .iter()
            .filter(|of| !is_service(of.vip))
            .flat_map(|of| &of.reals)
            .map(katran::Real::address)
            .filter(|real| {
                let alone = (1..4).map(other_real);
                alone.into_iter().any(|of| of == *real)
            })
            .collect();
        let real = draw.one(&named)?;
        let flags = draw.one(&[RealFlags::empty(), RealFlags::LOCAL_REAL])?;
        draw.change(
            |model| model.set_flags(real, flags),
            move |katran| katran.set_real_flags(real, flags),
        )
    }),
    ("hash function", |draw| {
        let vip = draw.vip(|_| true)?.vip;
        let function = draw.one(&[HashFunction::Maglev, HashFunction::MaglevV2])?;
        draw.change(
            |model| model.vip_mut(vip).hash = Some(function),
            move |katran| katran.set_hash_function(vip, function),
        )
    }),
    ("add server ids", |draw| {
        let mut ids = Vec::new();
        for _ in 0..draw.rng.u32(1..6) {
            let id = draw.rng.u32(1..60);
            let known = draw.model.state.server_ids.iter();
            let real = other_real(4 + draw.rng.u8(0..14));
            let mut all = known
                .map(|of| of.id.id())
                .chain(ids.iter().map(ServerId::id));
            if all.all(|of| of != id) {
                drop(all);
                ids.push(ServerId::new(id, real));
            }
        }
        if ids.is_empty() || draw.model.state.server_ids.len() > 40 {
            return None;
        }
        draw.change(
            |model| {
                let new = ids.iter().map(|id| ServerIdState::new(*id));
                model.state.server_ids.extend(new);
            },
            {
                let ids = ids.clone();
                move |katran| katran.server_ids_mut().add(&ids)
            },
        )
    }),
    ("remove server ids", |draw| {
        let ids = draw.some(&ids(draw.model, |_| true))?;
        draw.change(
            |model| {
                let of = &mut model.state.server_ids;
                of.retain(|of| !ids.contains(&of.id.id()));
            },
            {
                let mut ids = ids.clone();
                ids.sort();
                ids.dedup();
                move |katran| katran.server_ids_mut().remove(&ids)
            },
        )
    }),
    ("invalidate", |draw| {
        let ids = draw.some(&ids(draw.model, |of| of.valid))?;
        draw.change(|model| set_valid(model, &ids, false), {
            let ids = ids.clone();
            move |katran| katran.server_ids_mut().invalidate(&ids)
        })
    }),
    ("revalidate", |draw| {
        let ids = draw.some(&ids(draw.model, |of| !of.valid))?;
        draw.change(|model| set_valid(model, &ids, true), {
            let ids = ids.clone();
            move |katran| katran.server_ids_mut().revalidate(&ids)
        })
    }),
    ("add source routes", |draw| {
        let real = other_real(4 + draw.rng.u8(0..14));
        let prefixes: Vec<katran::Prefix> = (0..draw.rng.u8(1..4))
            .map(|_| match draw.rng.bool() {
                true => format!("10.{}.0.0/16", draw.rng.u8(0..20)),
                false => format!("2001:db8:{:x}::/48", draw.rng.u8(100..120)),
            })
            .map(|text| text.parse().unwrap())
            .collect();
        draw.change(
            |model| {
                let routes = &mut model.state.source_routes;
                routes.retain(|of| !prefixes.contains(&of.prefix()));
                let mut new = prefixes.clone();
                new.sort();
                new.dedup();
                routes.extend(new.into_iter().map(|of| SourceRoute::new(of, real)));
            },
            {
                let prefixes = prefixes.clone();
                move |katran| katran.source_routes_mut().add(&prefixes, real)
            },
        )
    }),
    ("remove source routes", |draw| {
        let known = draw.model.state.source_routes.iter();
        let known: Vec<_> = known.map(SourceRoute::prefix).collect();
        let mut gone = draw.some(&known)?;
        gone.sort();
        gone.dedup();
        draw.change(
            |model| {
                let routes = &mut model.state.source_routes;
                routes.retain(|of| !gone.contains(&of.prefix()));
            },
            {
                let gone = gone.clone();
                move |katran| katran.source_routes_mut().remove(&gone)
            },
        )
    }),
    ("clear source routes", |draw| {
        draw.change(
            |model| model.state.source_routes.clear(),
            |katran| katran.source_routes_mut().clear(),
        )
    }),
    ("add an address of decapsulation", |draw| {
        let address: IpAddr = [203, 0, 113, draw.rng.u8(200..210)].into();
        let mode = draw.one(&[DecapMode::Inline, DecapMode::Egress])?;
        if draw
            .model
            .state
            .decap
            .iter()
            .any(|of| of.address == address)
        {
            return None;
        }
        draw.change(
            |model| model.state.decap.push(DecapState::new(address, mode)),
            move |katran| katran.decap_mut().add(address, mode),
        )
    }),
    ("remove an address of decapsulation", |draw| {
        let address = draw.one(&draw.model.state.decap.clone())?.address;
        draw.change(
            |model| model.state.decap.retain(|of| of.address != address),
            move |katran| katran.decap_mut().remove(address),
        )
    }),
    ("gateway", |draw| {
        let mac = MacAddr::new([2, 0, 0, 0, 1, draw.rng.u8(..)]);
        draw.change(
            |model| settings(model).gateway_mac = Some(Gateway::Mac(mac)),
            move |katran| katran.gateways_mut().set(Gateway::Mac(mac)),
        )
    }),
    ("gateway of IPv6", |draw| {
        let known = draw.model.state.balancer.as_ref()?;
        let Some(Gateway::Mac(mac)) = known.gateway_mac else {
            return None;
        };
        // The same, written differently.
        let mac = match known.gateway_mac_v6 {
            Some(_) => None,
            None => Some(mac),
        };
        draw.change(
            |model| settings(model).gateway_mac_v6 = mac,
            move |katran| katran.gateways_mut().set_mac_v6(mac),
        )
    }),
    ("source address", |draw| {
        let source = Ipv4Addr::new(192, 0, 2, draw.rng.u8(10..20));
        draw.change(
            |model| settings(model).source_v4 = Some(source),
            move |katran| katran.gateways_mut().set_source(source.into()),
        )
    }),
    ("map a mark", |draw| {
        let (mark, real) = (draw.rng.u32(1000..1010), draw.real());
        draw.change(
            |model| {
                model.state.marks.retain(|of| of.mark != mark);
                model.state.marks.push(MarkState::new(mark, real));
            },
            move |katran| katran.probes_mut().map_mark(mark, real),
        )
    }),
    ("unmap a mark", |draw| {
        let mark = draw.one(&draw.model.state.marks.clone())?.mark;
        draw.change(
            |model| model.state.marks.retain(|of| of.mark != mark),
            move |katran| katran.probes_mut().unmap_mark(mark),
        )
    }),
    ("match probes", |draw| {
        let kind = draw.one(&[ProbeMatch::Destination, ProbeMatch::Source])?;
        let to = ([203, 0, 113, draw.rng.u8(201..206)], 80).into();
        let (by, real) = (kind(to), draw.real());
        draw.change(
            |model| {
                model.state.probe_matches.retain(|of| of.by != by);
                let of = ProbeMatchState::new(by, real);
                model.state.probe_matches.push(of);
            },
            move |katran| match by {
                ProbeMatch::Destination(to) => katran.probes_mut().match_destination(to, real),
                ProbeMatch::Source(to) => katran.probes_mut().match_source(to, real),
            },
        )
    }),
    ("unmatch probes", |draw| {
        let by = draw.one(&draw.model.state.probe_matches.clone())?.by;
        draw.change(
            |model| model.state.probe_matches.retain(|of| of.by != by),
            move |katran| match by {
                ProbeMatch::Destination(to) => katran.probes_mut().unmatch_destination(to),
                ProbeMatch::Source(to) => katran.probes_mut().unmatch_source(to),
            },
        )
    }),
    ("count probes", |draw| {
        let vip = other_vip(4 * draw.rng.u8(0..4));
        if draw.model.state.probes.contains(&vip) {
            return None;
        }
        draw.change(
            |model| model.state.probes.push(vip),
            move |katran| katran.probes_mut().register(vip),
        )
    }),
    ("count probes no more", |draw| {
        let vip = draw.one(&draw.model.state.probes.clone())?;
        draw.change(
            |model| model.state.probes.retain(|of| *of != vip),
            move |katran| katran.probes_mut().unregister(vip),
        )
    }),
    ("watch misses", |draw| {
        let vip = draw.one(&draw.model.state.vips.clone())?.vip;
        draw.change(
            |model| model.watched = Some(vip),
            move |katran| katran.stats_mut().watch_misses(vip),
        )
    }),
    ("watch no more", |draw| {
        draw.change(
            |model| model.watched = None,
            |katran| {
                katran.stats_mut().unwatch_misses();
                Ok(())
            },
        )
    }),
    ("reload", |draw| {
        let known = draw.model.state.balancer.as_ref()?.features?;
        let wanted = other_features(known);
        draw.change(
            |model| settings(model).features = Some(wanted),
            move |katran| katran.reload(wanted),
        )
    }),
    ("apply a few", |draw| {
        let turn = one_vip_more(draw)?;
        draw.apply(|model| {
            turn(model);
            model.state.marks.clear();
        })
    }),
    ("apply names", |draw| {
        // Names move from one kind to another, and the reals must stay in use meanwhile. A real
        // with flags would keep them with only a name.
        let real = other_real(4 + draw.rng.u8(0..14));
        draw.apply(|model| {
            let reals = model.state.source_routes.iter().map(SourceRoute::real);
            let reals: Vec<_> = reals.chain([real]).collect();
            model.state.source_routes.clear();
            model.state.server_ids.clear();
            for (id, real) in reals.into_iter().enumerate() {
                let id = ServerId::new(id as u32 + 20, real);
                model.state.server_ids.push(ServerIdState::new(id));
            }
        })
    }),
    ("apply others", |draw| {
        let start = draw.rng.u8(0..20);
        draw.apply(|model| {
            model.state.vips.retain(|of| is_service(of.vip));
            for number in start..start + 3 {
                let mut of = VipState::new(other_vip(number));
                of.hash = Some(HashFunction::default());
                model.state.vips.push(of);
                for nth in 0..3 {
                    model.put(other_vip(number), other_real(1 + (number + nth) % 19), 1);
                }
            }
            let real = other_real(7);
            model.state.source_routes = (0..3)
                .map(|nth| format!("10.{}.0.0/16", nth + start).parse().unwrap())
                .map(|prefix| SourceRoute::new(prefix, real))
                .collect();
            model.state.decap.clear();
            model.state.probes.clear();
            settings(model).source_v4 = Some([192, 0, 2, 9].into());
            let vips = &model.state.vips;
            model.watched =
                (model.watched).filter(|watched| vips.iter().any(|of| of.vip == *watched));
        })
    }),
    (REPLACE, |draw| {
        let turn = one_vip_more(draw)?;
        let known = draw.model.state.balancer.as_ref()?;
        let (vips, flows) = match known.max_vips {
            Some(40) => (43, 6_000),
            _ => (40, 10_000),
        };
        let features = other_features(known.features?);
        draw.apply(|model| {
            let settings = settings(model);
            (settings.max_vips, settings.flow_table_size) = (Some(vips), Some(flows));
            settings.features = Some(features);
            turn(model);
        })
    }),
    ("attach and detach", |draw| {
        let second = "eth1";
        match draw.model.attached.contains(second) {
            true => draw.change(
                |model| model.attached.retain(|of| of != second),
                move |katran| katran.detach(second),
            ),
            false => draw.change(
                |model| {
                    model.attached.insert(second.to_owned());
                    model.probing = true;
                },
                move |katran| katran.attach(second, XdpMode::Generic).map(drop),
            ),
        }
    }),
    ("an entry of a root program", |draw| {
        let path = draw.shared.to_owned();
        match draw.model.entries {
            0 => draw.change(
                |model| {
                    model.entries = 1;
                    model.probing = true;
                },
                move |katran| katran.attach_shared(path, 2),
            ),
            _ => draw.change(
                |model| model.entries = 0,
                move |katran| katran.detach_shared(path),
            ),
        }
    }),
    ("the way of probes", |draw| match draw.model.probing {
        true => draw.change(
            |model| model.probing = false,
            |katran| {
                katran.probes_mut().detach();
                Ok(())
            },
        ),
        false => draw.change(
            |model| model.probing = true,
            |katran| katran.probes_mut().attach(),
        ),
    }),
];

/// Load-time settings, and others.
pub(crate) const REPLACE: &str = "replace";

/// Kinds with two directions: from the start of a run it is the first; the second is named with
/// [`BACK`].
pub(crate) const TURNING: [&str; 5] = [
    "gateway of IPv6",
    "reload",
    "attach and detach",
    "an entry of a root program",
    "the way of probes",
];

/// Ends the name of a kind that reverts an earlier change.
pub(crate) const BACK: &str = ", back";

/// Kinds after which clients get no answer.
pub(crate) const DISTURBING: [&str; 1] = ["gateway"];

/// Adds a VIP, and takes a real from another.
fn one_vip_more(draw: &mut Draw<'_>) -> Option<impl Fn(&mut Model) + use<>> {
    let (vip, real) = (draw.vip(|of| !of.reals.is_empty())?, draw.real());
    let new = other_vip(draw.rng.u8(12..20));
    if draw.model.state.vips.iter().any(|of| of.vip == new) {
        return None;
    }
    Some(move |model: &mut Model| {
        let mut of = VipState::new(new);
        of.hash = Some(HashFunction::MaglevV2);
        model.state.vips.push(of);
        model.put(new, real, 2);
        let gone = vip.reals[0].address();
        remove_real(model.vip_mut(vip.vip), gone);
    })
}

fn other_features(known: Features) -> Features {
    match known.contains(Features::TCP_SERVER_ID) {
        true => features(),
        false => features() | Features::TCP_SERVER_ID | Features::GLOBAL_FLOW_TABLE,
    }
}

fn remove_real(of: &mut VipState, address: IpAddr) {
    of.reals.retain(|real| real.address() != address);
    of.down.retain(|down| *down != address);
}

fn settings(model: &mut Model) -> &mut katran::state::BalancerState {
    model.state.balancer.as_mut().unwrap()
}

fn ids(model: &Model, is: impl Fn(&ServerIdState) -> bool) -> Vec<u32> {
    let all = model.state.server_ids.iter().filter(|of| is(of));
    all.map(|of| of.id.id()).collect()
}

fn set_valid(model: &mut Model, ids: &[u32], valid: bool) {
    for of in &mut model.state.server_ids {
        if ids.contains(&of.id.id()) {
            of.valid = valid;
        }
    }
}

/// A kind that is possible, and its change.
pub(crate) fn some(draw: &mut Draw<'_>) -> (&'static str, Change) {
    loop {
        let (name, kind) = KINDS[draw.rng.usize(..KINDS.len())];
        if DISTURBING.contains(&name) {
            continue;
        }
        if let Some(change) = kind(draw) {
            return (name, change);
        }
    }
}

/// A change of one kind.
pub(crate) fn of_kind(name: &str, draw: &mut Draw<'_>) -> Change {
    let (_, kind) = KINDS.iter().find(|(of, _)| *of == name).unwrap();
    // Impossible draws are few.
    (0..1000).find_map(|_| kind(draw)).unwrap()
}
