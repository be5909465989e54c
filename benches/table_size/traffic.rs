//! The service's connections: when they begin, how long they last and when they send.
//!
//! Lengths are log-normal. Each connection sends its SYN, a packet one round trip later, then one
//! after each of its intervals, and a last one when it ends. More frequent packets would make no
//! difference to a flow table.

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::Distribution;
use rand_distr::LogNormal;

use crate::service::SECOND;

/// Ticks from a SYN to the next packet.
const ROUND_TRIP: u32 = 2;

/// The connections' parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// New connections a second.
    pub(crate) rate: f64,
    /// The median of the lengths, in seconds.
    pub(crate) median: f64,
    /// The standard deviation of the logarithm of the lengths.
    pub(crate) sigma: f64,
    /// The range of intervals, in seconds: a connection's is log-uniform.
    pub(crate) silence: [f64; 2],
    /// The share of connections whose last packet is a FIN. The others' clients just stop.
    pub(crate) fins: f64,
}

impl Kind {
    /// In seconds.
    pub(crate) fn mean_length(&self) -> f64 {
        self.median * (self.sigma * self.sigma / 2.0).exp()
    }

    /// The mean number of connections at a time.
    pub(crate) fn at_once(&self) -> f64 {
        self.rate * self.mean_length()
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    /// Among all connections, from 0.
    pub(crate) number: u32,
    pub(crate) slot: u32,
    /// Its first packet's real.
    pub(crate) real: u16,
    interval: u32,
    end: u32,
    fin: bool,
}

impl Connection {
    /// Whether its packet at this time is a FIN.
    pub(crate) fn ends_by_fin(&self, now: u32) -> bool {
        self.fin && now >= self.end
    }

    /// When it sends next; `None`: that was the last packet.
    fn next(&self, now: u32) -> Option<u32> {
        (now < self.end).then(|| self.end.min(now + self.interval))
    }
}

/// All connections by the tick of their next packet.
pub(crate) struct Connections {
    kind: Kind,
    random: StdRng,
    slots: u32,
    lengths: LogNormal<f64>,
    /// Places of `alive`, in a wheel of ticks.
    wheel: Vec<Vec<u32>>,
    alive: Vec<Option<Connection>>,
    free: Vec<u32>,
    begun: u32,
}

impl Connections {
    /// The service in its steady state: with the usual connections, each at some moment of its
    /// life.
    pub(crate) fn new(kind: Kind, ring: &[u16], seed: u64) -> Self {
        let longest = (kind.silence[1] * f64::from(SECOND)) as usize + 2;
        let logarithm = kind.median.ln();
        let mut all = Self {
            kind,
            random: StdRng::seed_from_u64(seed),
            slots: ring.len() as u32,
            lengths: LogNormal::new(logarithm, kind.sigma).unwrap(),
            wheel: vec![Vec::new(); longest],
            alive: Vec::new(),
            free: Vec::new(),
            begun: 0,
        };
        // Long connections are over-represented among existing ones: a log-normal distribution
        // weighted by length is log-normal again.
        let there = LogNormal::new(logarithm + kind.sigma * kind.sigma, kind.sigma).unwrap();
        for _ in 0..kind.at_once() as u32 {
            let length = there.sample(&mut all.random);
            let left = length * all.random.random::<f64>();
            let mut connection = all.draw(0, left);
            connection.real = ring[connection.slot as usize];
            let until = connection.end.min(connection.interval);
            let at = all.random.random_range(0..=until);
            all.keep(connection, at);
        }
        all
    }

    fn draw(&mut self, now: u32, seconds: f64) -> Connection {
        let [least, most] = self.kind.silence.map(f64::ln);
        let silence = (least + (most - least) * self.random.random::<f64>()).exp();
        let ticks = |seconds: f64| (seconds * f64::from(SECOND)) as u32;
        let connection = Connection {
            number: self.begun,
            slot: self.random.random_range(0..self.slots),
            real: 0,
            interval: ticks(silence).max(1),
            end: now.saturating_add(ticks(seconds)).max(now + 1),
            fin: self.random.random_bool(self.kind.fins),
        };
        self.begun += 1;
        connection
    }

    fn keep(&mut self, connection: Connection, at: u32) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.alive.push(None);
            self.alive.len() as u32 - 1
        });
        self.alive[place as usize] = Some(connection);
        self.at(at).push(place);
    }

    fn at(&mut self, tick: u32) -> &mut Vec<u32> {
        let ticks = self.wheel.len();
        &mut self.wheel[tick as usize % ticks]
    }

    /// Plays the packets of one tick: `first` gives a new connection's real, and `packet` returns
    /// whether an existing one continues.
    pub(crate) fn tick<T>(
        &mut self,
        now: u32,
        world: &mut T,
        first: impl Fn(&mut T, &Connection) -> u16,
        packet: impl Fn(&mut T, &Connection) -> bool,
    ) {
        let new_until = |tick: u32| (f64::from(tick) * self.kind.rate / f64::from(SECOND)) as u64;
        for _ in new_until(now)..new_until(now + 1) {
            let seconds = self.lengths.sample(&mut self.random);
            let mut connection = self.draw(now, seconds);
            connection.real = first(world, &connection);
            self.keep(connection, connection.end.min(now + ROUND_TRIP));
        }
        for place in std::mem::take(self.at(now)) {
            let Some(connection) = self.alive[place as usize] else {
                continue;
            };
            let lives = packet(world, &connection);
            match connection.next(now).filter(|_| lives) {
                Some(next) => self.at(next).push(place),
                None => {
                    self.alive[place as usize] = None;
                    self.free.push(place);
                }
            }
        }
    }

    /// The existing connections.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Connection> {
        self.alive.iter().flatten()
    }

    /// How many connections have begun.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }
}
