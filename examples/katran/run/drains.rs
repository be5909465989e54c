//! Drains: reals that get no new flows by command, whatever their weight in the document; and how
//! long each drained real has been without packets.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::state::VipState;

use crate::report::Drain;

/// A drained real can be switched off after this long without packets, or earlier if its flows have
/// ended.
const QUIET: Duration = Duration::from_secs(60);

/// Drains by command, until they are undone or the process ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Drains(BTreeSet<(Vip, IpAddr)>);

impl Drains {
    /// Drains a real of one VIP or of all its VIPs, or undoes it. Returns these VIPs.
    pub(super) fn set(
        &mut self,
        state: &State,
        vip: Option<Vip>,
        real: IpAddr,
        undo: bool,
    ) -> Result<Vec<Vip>> {
        let is_meant = |of: &&VipState| vip.is_none_or(|vip| vip == of.vip);
        let has_it = |of: &&VipState| of.reals.iter().any(|of| of.address() == real);
        let named = state.vips.iter().filter(is_meant).filter(has_it);
        let named: Vec<Vip> = named.map(|of| of.vip).collect();
        if named.is_empty() {
            let none = vip.map_or("no VIP has a".to_owned(), |vip| format!("{vip} has no"));
            anyhow::bail!("{none} real {real}: `katran status` lists all");
        }
        for vip in &named {
            match undo {
                true => self.0.remove(&(*vip, real)),
                false => self.0.insert((*vip, real)),
            };
        }
        Ok(named)
    }

    /// A document's state with weight 0 for drained reals. Forgets drains of reals that the
    /// document lacks.
    pub(super) fn applied(&mut self, mut state: State) -> State {
        let mut there = BTreeSet::new();
        for of_vip in &mut state.vips {
            for real in &mut of_vip.reals {
                let drain = (of_vip.vip, real.address());
                if self.0.contains(&drain) {
                    *real = real.weight(0);
                    there.insert(drain);
                }
            }
        }
        self.0 = there;
        state
    }
}

/// How long drained reals have been without packets.
#[derive(Default)]
pub(super) struct Silences {
    /// If the library does not know: the packets to the real so far, and since when.
    counted: BTreeMap<IpAddr, (u64, Instant)>,
    of: BTreeMap<(Vip, IpAddr), (Option<Duration>, bool)>,
    said: BTreeSet<(Vip, IpAddr)>,
    /// After how long flows end: TCP, UDP.
    over: [Option<Duration>; 2],
}

impl Silences {
    /// Adopts the current settings.
    pub(super) fn follow(&mut self, katran: &Katran) {
        let settings = katran.state().balancer.unwrap_or_default();
        self.over = [settings.flow_idle_timeout, settings.udp_timeout];
    }

    /// Looks at all drained reals and returns what to report, each once.
    pub(super) fn look(&mut self, katran: &Katran) -> Vec<String> {
        let [tcp, udp] = self.over;
        let over = |vip: Vip| match vip.protocol() {
            Protocol::Tcp => tcp,
            Protocol::Udp => udp,
        };
        let mut found = BTreeMap::new();
        let mut counted = BTreeMap::new();
        for vip in katran.vips() {
            for real in katran.reals(vip).unwrap_or_default() {
                if real.get_weight() == 0 {
                    let silent = self.silence(katran, vip, real, &mut counted);
                    let enough = over(vip).map_or(QUIET, |over| over.min(QUIET));
                    let done = silent.is_some_and(|silent| silent >= enough);
                    found.insert((vip, real.address()), (silent, done));
                }
            }
        }
        (self.of, self.counted) = (found, counted);
        let done = self.of.iter().filter(|(_, (_, done))| *done);
        let done: BTreeSet<_> = done.map(|(drain, _)| *drain).collect();
        let news = done.difference(&self.said).map(|(vip, real)| {
            let silent = self.of[&(*vip, *real)].0.unwrap_or_default().as_secs();
            format!("drained: {real} of {vip}: no packet for {silent} s")
        });
        let news = news.collect();
        self.said = done;
        news
    }

    fn silence(
        &self,
        katran: &Katran,
        vip: Vip,
        real: Real,
        counted: &mut BTreeMap<IpAddr, (u64, Instant)>,
    ) -> Option<Duration> {
        let address = real.address();
        match katran.drained(vip, address) {
            Ok(silence) => silence,
            // With all flows remembered, silence is known for the real, not for the VIP.
            Err(katran::Error::Unsupported { .. }) => {
                let packets = katran.stats().real(address).ok()?.forwarded.packets;
                let before = self.counted.get(&address).copied();
                let before = before.filter(|(before, _)| *before == packets);
                let (_, since) = before.unwrap_or((packets, Instant::now()));
                counted.insert(address, (packets, since));
                Some(since.elapsed())
            }
            Err(_) => None,
        }
    }

    /// The drain of one real.
    pub(super) fn drain(&self, drains: &Drains, vip: Vip, real: Real) -> Option<Drain> {
        let of = (vip, real.address());
        let (silent, done) = self.of.get(&of).copied().unwrap_or_default();
        (real.get_weight() == 0).then(|| Drain {
            by_command: drains.0.contains(&of),
            silent: silent.map(|silent| silent.as_secs_f64()),
            done,
        })
    }
}
