//! The state of a balancer that the kernel's maps do not hold: conversion from and to records.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::record::Change;
use super::record::Drawn;
use super::record::Intent;
use super::record::Record;
use crate::config::BalancerState;
use crate::config::Config;
use crate::document::DecapState;
use crate::document::MarkState;
use crate::document::ProbeMatch;
use crate::document::ProbeMatchState;
use crate::document::ServerIdState;
use crate::document::State;
use crate::table::Name;
use crate::table::Names;
use crate::table::Table;
use crate::types::DecapMode;
use crate::types::Nonsense;
use crate::types::Prefix;
use crate::types::RealNumber;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::StoredPrefix;
use crate::types::Vip;
use crate::types::canonical;

/// Names in one record.
const NAMES: usize = 1 << 18;

/// A balancer's whole recorded state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) config: Config,
    pub(crate) drawn: Drawn,
    pub(crate) table: Table,
    pub(crate) server_ids: Names<u32>,
    pub(crate) invalid_ids: BTreeSet<u32>,
    pub(crate) source_routes: Names<Prefix>,
    pub(crate) decap: BTreeMap<IpAddr, DecapMode>,
    pub(crate) small: Small,
}

/// The small parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Small {
    pub(crate) marks: BTreeMap<u32, IpAddr>,
    pub(crate) matches: BTreeMap<ProbeMatch, IpAddr>,
    /// The keys that probes are counted for.
    pub(crate) probes: BTreeSet<Vip>,
    /// The VIP whose misses are counted.
    pub(crate) watched: Option<Vip>,
}

/// The same, borrowed, to make a snapshot.
pub(crate) struct View<'a> {
    /// As in [`Config::stored`].
    pub(crate) settings: Vec<u8>,
    pub(crate) drawn: Drawn,
    pub(crate) table: &'a Table,
    pub(crate) server_ids: &'a Names<u32>,
    pub(crate) invalid_ids: &'a BTreeSet<u32>,
    pub(crate) source_routes: &'a Names<Prefix>,
    pub(crate) decap: &'a BTreeMap<IpAddr, DecapMode>,
    pub(crate) small: Small,
}

impl View<'_> {
    /// Passes the records of a snapshot to `write`.
    pub(super) fn records(&self, write: &mut dyn FnMut(Record)) {
        write(Record::Start(self.settings.clone(), self.drawn.clone()));
        for (vip, entry) in self.table.stored_vips() {
            write(Record::Vip(vip, entry));
        }
        in_parts(self.table.stored_reals(), |reals| {
            write(Record::Reals(reals))
        });
        write(Record::Numbers(self.table.stored_numbers()));
        let mut part = |change| write(Record::Part(change));
        let ids = self.server_ids.iter().map(|(id, real)| (id, real.0));
        in_parts(ids, |add| {
            part(Change::ServerIds {
                remove: Vec::new(),
                add,
            });
        });
        in_parts(self.invalid_ids.iter().copied(), |ids| {
            part(Change::Validity { ids, valid: false });
        });
        let routes = self.source_routes.iter();
        let routes = routes.map(|(prefix, real)| (StoredPrefix::from(prefix), real.0));
        in_parts(routes, |add| {
            part(Change::SourceRoutes {
                remove: Vec::new(),
                add,
            });
        });
        for (address, mode) in self.decap {
            part(Change::Decap(*address, Some(mode.stored())));
        }
        let small = &self.small;
        for (mark, real) in &small.marks {
            part(Change::Mark(*mark, Some(*real)));
        }
        for (by, real) in &small.matches {
            part(Change::Match((*by).into(), Some(*real)));
        }
        for vip in &small.probes {
            part(Change::Probe((*vip).into(), true));
        }
        part(Change::Watched(small.watched.map(Into::into)));
    }
}

/// Passes them all on, some at a time.
fn in_parts<T>(mut all: impl Iterator<Item = T>, mut write: impl FnMut(Vec<T>)) {
    loop {
        let part: Vec<T> = all.by_ref().take(NAMES).collect();
        if part.is_empty() {
            return;
        }
        write(part);
    }
}

impl Kept {
    /// The state after the first record.
    pub(super) fn start(settings: &[u8], drawn: Drawn) -> Result<Self, String> {
        let config = Config::of_stored(settings)?;
        Ok(Self {
            table: Table::new(config.max_vips, config.max_reals),
            server_ids: Names::new(config.max_server_ids),
            invalid_ids: BTreeSet::new(),
            source_routes: Names::new(config.max_source_routes),
            decap: BTreeMap::new(),
            small: Small::default(),
            drawn,
            config,
        })
    }

    /// Adds a part of a snapshot.
    pub(super) fn part(&mut self, record: Record) -> Result<(), String> {
        let taken = match record {
            Record::Vip(vip, entry) => self.table.restore_vip((vip, entry)),
            Record::Reals(reals) => reals
                .into_iter()
                .try_for_each(|real| self.table.restore_real(real)),
            Record::Numbers(numbers) => self.table.restore_numbers(numbers),
            Record::Part(Change::ServerIds { remove, add }) if remove.is_empty() => {
                let add = add.into_iter().map(|(id, real)| (id, RealNumber(real)));
                self.server_ids.extend(add);
                Ok(())
            }
            Record::Part(Change::SourceRoutes { remove, add }) if remove.is_empty() => {
                return self.routes(add).map_err(|Nonsense(what)| what.to_owned());
            }
            Record::Part(change) => return self.change(change),
            _ => Err(Nonsense("its records are in an impossible order")),
        };
        taken.map_err(|Nonsense(what)| what.to_owned())
    }

    /// Completes a change that was under way.
    ///
    /// # Errors
    /// What is wrong with it: another version may have written the record.
    pub(crate) fn finish(&mut self, intent: Intent) -> Result<(), String> {
        if let Some(edit) = intent.edit {
            let made = self.table.restore_edit(edit);
            made.map_err(|Nonsense(what)| what.to_owned())?;
        }
        intent
            .changes
            .into_iter()
            .try_for_each(|change| self.change(change))
    }

    /// Abandons a change that was under way. If packets may have met its reals, their numbers
    /// become free only after a grace period, and with another generation.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub(crate) fn give_up(&mut self, intent: Intent, met: bool) -> Result<(), String> {
        match intent.edit {
            Some(edit) if met => {
                let given_up = self.table.restore_abandoned(edit);
                given_up.map_err(|Nonsense(what)| what.to_owned())
            }
            _ => Ok(()),
        }
    }

    fn routes(&mut self, add: Vec<(StoredPrefix, u16)>) -> Result<(), Nonsense> {
        let add = add
            .into_iter()
            .map(|(prefix, real)| Ok((Prefix::try_from(prefix)?, RealNumber(real))));
        let add = add.collect::<Result<Vec<_>, _>>()?;
        self.source_routes.extend(add);
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<(), String> {
        if let Change::Settings(bytes) = change {
            let config = Config::of_stored(&bytes)?;
            self.config = self.same_load(config)?;
            return Ok(());
        }
        let made = self.change_kept(change);
        made.map_err(|Nonsense(what)| what.to_owned())
    }

    /// The new settings, if they do not need another load.
    fn same_load(&self, config: Config) -> Result<Config, String> {
        let [before, after] = [&self.config, &config].map(BalancerState::of);
        match before.load_changes(&after)[..] {
            [] => Ok(config),
            [setting, ..] => Err(format!("changing {setting} takes another load")),
        }
    }

    fn change_kept(&mut self, change: Change) -> Result<(), Nonsense> {
        let small = &mut self.small;
        match change {
            // Handled above.
            Change::Settings(_) => {}
            Change::ServerIds { remove, add } => {
                for id in remove.iter().chain(add.iter().map(|(id, _)| id)) {
                    self.invalid_ids.remove(id);
                }
                let add = add.into_iter().map(|(id, real)| (id, RealNumber(real)));
                self.server_ids.commit(&remove, add);
            }
            Change::Validity { ids, valid } => {
                for id in ids {
                    match valid {
                        true => self.invalid_ids.remove(&id),
                        false => self.invalid_ids.insert(id),
                    };
                }
            }
            Change::SourceRoutes { remove, add } => {
                let remove = remove.into_iter().map(Prefix::try_from);
                let remove = remove.collect::<Result<Vec<_>, _>>()?;
                let add = add
                    .into_iter()
                    .map(|(prefix, real)| Ok((Prefix::try_from(prefix)?, RealNumber(real))));
                let add = add.collect::<Result<Vec<_>, _>>()?;
                self.source_routes.commit(&remove, add);
            }
            Change::Decap(address, mode) => {
                let mode = mode.map(DecapMode::of_stored).transpose()?;
                set(&mut self.decap, canonical(address)?, mode);
            }
            Change::Mark(mark, real) => set(&mut small.marks, mark, real),
            Change::Match(by, real) => set(&mut small.matches, by.into(), real),
            Change::Probe(vip, true) => drop(small.probes.insert(vip.try_into()?)),
            Change::Probe(vip, false) => drop(small.probes.remove(&vip.try_into()?)),
            Change::Met(met) => self.table.take_met(&met)?,
            Change::Watched(vip) => small.watched = vip.map(Vip::try_from).transpose()?,
        }
        Ok(())
    }

    /// Whether all parts fit together, as the rest of the code assumes.
    pub(super) fn check_whole(&self) -> Result<(), String> {
        let whole = self.table.check_whole();
        whole.map_err(|Nonsense(what)| what.to_owned())?;
        let mut known = vec![false; usize::from(u16::MAX) + 1];
        for (_, entry) in self.table.reals() {
            known[usize::from(entry.number.0)] = true;
        }
        let names_there = named(&self.server_ids, &known) && named(&self.source_routes, &known);
        let mut ids = self.invalid_ids.iter();
        match names_there && ids.all(|id| self.server_ids.get(*id).is_some()) {
            true => Ok(()),
            false => Err("a server id or a source route names a missing real".to_owned()),
        }
    }

    /// As [`Katran::state`](crate::Katran::state).
    pub(crate) fn state(&self) -> State {
        let address = |real| self.table.address_of(real);
        let ids = self.server_ids.iter().filter_map(|(id, real)| {
            Some(ServerIdState {
                valid: !self.invalid_ids.contains(&id),
                ..ServerIdState::new(ServerId::new(id, address(real)?))
            })
        });
        let routes = self.source_routes.iter();
        let routes =
            routes.filter_map(|(prefix, real)| Some(SourceRoute::new(prefix, address(real)?)));
        let small = &self.small;
        State {
            balancer: Some(BalancerState::of(&self.config)),
            vips: self.table.vip_states(),
            server_ids: ids.collect(),
            source_routes: routes.collect(),
            decap: self
                .decap
                .iter()
                .map(|(address, mode)| DecapState::new(*address, *mode))
                .collect(),
            marks: small
                .marks
                .iter()
                .map(|(mark, real)| MarkState::new(*mark, *real))
                .collect(),
            probe_matches: small
                .matches
                .iter()
                .map(|(by, real)| ProbeMatchState::new(*by, *real))
                .collect(),
            probes: small.probes.iter().copied().collect(),
        }
    }

    /// For a snapshot.
    #[cfg(test)]
    pub(crate) fn view(&self) -> View<'_> {
        View {
            settings: self.config.stored().unwrap(),
            drawn: self.drawn.clone(),
            table: &self.table,
            server_ids: &self.server_ids,
            invalid_ids: &self.invalid_ids,
            source_routes: &self.source_routes,
            decap: &self.decap,
            small: self.small.clone(),
        }
    }
}

/// Whether the numbers of all names belong to known reals.
fn named<K: Name>(names: &Names<K>, known: &[bool]) -> bool {
    names.iter().all(|(_, real)| known[usize::from(real.0)])
}

fn set<K: Ord, V>(of: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => of.insert(key, value),
        None => of.remove(&key),
    };
}
