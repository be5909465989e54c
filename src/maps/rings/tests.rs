//! Places of rings with a fake kernel, in which packets take as long as they like: the store never
//! writes to a place, or frees a chunk, that a packet may still read.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const RING_SIZE: u32 = 3;
const VIPS: usize = 20;

/// The memory of a chunk, which outlives the store's view of it.
#[derive(Clone)]
struct Memory(Rc<Vec<AtomicU16>>);

impl Chunk for Memory {
    fn words(&self) -> &[AtomicU16] {
        &self.0
    }
}

fn memory() -> Memory {
    let words = ring_bytes(RING_SIZE) / 2 * RINGS_PER_CHUNK;
    Memory(Rc::new((0..words).map(|_| AtomicU16::new(0)).collect()))
}

/// A packet on its way through a ring.
struct Packet {
    /// The last moment that had begun when it came.
    since: u64,
    place: RingSlot,
    memory: Memory,
    ring: u16,
}

impl Packet {
    /// Whether the packet still finds the ring it came for.
    fn is_safe(&self, world: &World) -> bool {
        let stride = (ring_bytes(RING_SIZE) / 2) as usize;
        let first = (self.place.0 % RINGS_PER_CHUNK) as usize * stride;
        let slots = &self.memory.0[first..first + RING_SIZE as usize];
        let same = |word: &AtomicU16| word.load(Ordering::Relaxed) == self.ring;
        world.chunks[self.place.chunk()].is_some() && slots.iter().all(same)
    }
}

enum Job {
    Make(Vec<usize>),
    Unmake(Vec<usize>),
}

struct World {
    /// What packets find.
    chunks: Vec<Option<Memory>>,
    /// Chunks that remain after a refusal in the middle.
    left: BTreeSet<usize>,
    packets: Vec<Packet>,
    begun: u64,
    passed: u64,
    job: Option<Job>,
    finished: Option<io::Result<Vec<Memory>>>,
    refuses: bool,
    now: Instant,
    waits: usize,
}

impl World {
    /// What a thread that waits for grace periods achieves while packets are under way: a moment
    /// passes once the packets from before it have gone.
    fn pass(&mut self) {
        let packets = self.packets.iter().map(|packet| packet.since);
        let oldest = packets.min().unwrap_or(self.begun);
        self.passed = self.passed.max(oldest.min(self.begun));
    }

    fn refusal(&self) -> io::Result<()> {
        match self.refuses {
            true => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
            false => Ok(()),
        }
    }

    fn make(&mut self, numbers: &[usize]) -> io::Result<Vec<Memory>> {
        let numbers = self.reached(numbers);
        let make = |number: &usize| {
            let was_left = self.left.remove(number);
            assert!(self.chunks[*number].is_none() || was_left, "made twice");
            self.chunks[*number].insert(memory()).clone()
        };
        let made = numbers.iter().map(make).collect();
        self.refusal().inspect_err(|_| self.left.extend(numbers))?;
        Ok(made)
    }

    fn unmake(&mut self, numbers: &[usize]) -> io::Result<()> {
        let reached = self.reached(numbers);
        for number in reached {
            assert!(!self.left.contains(number), "freed twice");
            assert!(self.chunks[*number].take().is_some(), "freed twice");
        }
        self.refusal()
            .inspect_err(|_| self.left.extend(&numbers[reached.len()..]))
    }

    /// How much of a call is done, which may be refused in the middle.
    fn reached<'a>(&self, numbers: &'a [usize]) -> &'a [usize] {
        match self.refuses {
            true => &numbers[..numbers.len().div_ceil(2)],
            false => numbers,
        }
    }

    fn finish(&mut self) {
        self.finished = match self.job.take() {
            Some(Job::Make(numbers)) => Some(self.make(&numbers)),
            Some(Job::Unmake(numbers)) => Some(self.unmake(&numbers).map(|()| Vec::new())),
            None => return,
        };
    }
}

#[derive(Clone)]
struct FakeKernel(Rc<RefCell<World>>);

impl Backing for FakeKernel {
    type Chunk = Memory;

    fn make(&self, numbers: &[usize]) -> io::Result<Vec<Memory>> {
        self.0.borrow_mut().make(numbers)
    }

    fn unmake(&self, numbers: &[usize]) -> io::Result<()> {
        self.0.borrow_mut().unmake(numbers)
    }

    fn start_making(&mut self, numbers: &[usize]) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        assert!(world.job.is_none() && world.finished.is_none());
        world.job = Some(Job::Make(numbers.to_vec()));
        Ok(())
    }

    fn start_unmaking(&mut self, numbers: &[usize]) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        assert!(world.job.is_none() && world.finished.is_none());
        world.job = Some(Job::Unmake(numbers.to_vec()));
        Ok(())
    }

    fn finished(&mut self) -> Option<io::Result<Vec<Memory>>> {
        self.0.borrow_mut().finished.take()
    }

    fn begin(&mut self) -> Moment {
        let mut world = self.0.borrow_mut();
        world.begun += 1;
        Moment(world.begun)
    }

    fn passed(&self) -> Moment {
        Moment(self.0.borrow().passed)
    }

    fn wait(&self) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.refusal()?;
        assert!(world.packets.iter().all(|packet| packet.is_safe(&world)));
        world.packets.clear();
        world.pass();
        world.waits += 1;
        Ok(())
    }

    fn now(&self) -> Instant {
        self.0.borrow().now
    }
}

/// A balancer that consists only of its rings.
struct Balancer {
    store: RingStore<FakeKernel>,
    kernel: KernelCalls,
    world: Rc<RefCell<World>>,
    /// Each VIP's ring: its place, and the number in all of its slots.
    vips: Vec<Option<(RingSlot, u16)>>,
    written: u16,
}

impl Balancer {
    fn new() -> Self {
        let first = memory();
        let mut chunks = vec![None; max_chunks_in_surge(VIPS as u32) as usize];
        chunks[0] = Some(first.clone());
        let world = Rc::new(RefCell::new(World {
            chunks,
            left: BTreeSet::new(),
            packets: Vec::new(),
            begun: 0,
            passed: 0,
            job: None,
            finished: None,
            refuses: false,
            now: Instant::now(),
            waits: 0,
        }));
        let backing = FakeKernel(Rc::clone(&world));
        Self {
            store: RingStore::over(backing, first, RING_SIZE, VIPS as u32),
            kernel: KernelCalls::default(),
            world,
            vips: vec![None; VIPS],
            written: 0,
        }
    }

    /// Gives a VIP another ring, as the library does.
    fn update(&mut self, vip: usize) -> Result<(), Error> {
        self.store.collect(&self.kernel);
        if self.vips[vip].is_none() {
            self.store.reserve(&self.kernel, 1)?;
        }
        let ring = self.written + 1;
        let place = self.store.write(&self.kernel, &[ring; 3], None)?;
        self.written = ring;
        let before = self.vips[vip].replace((place, ring));
        if let Some((before, _)) = before {
            self.let_go(before);
        }
        Ok(())
    }

    fn remove(&mut self, vip: usize) {
        self.store.collect(&self.kernel);
        if let Some((place, _)) = self.vips[vip].take() {
            self.let_go(place);
        }
    }

    fn let_go(&mut self, place: RingSlot) {
        self.store.retire(Some(place));
        if self.store.is_full() {
            let _ = self.store.settle(&self.kernel);
        }
    }

    fn packet(&mut self, vip: usize) {
        if let Some((place, ring)) = self.vips[vip] {
            let mut world = self.world.borrow_mut();
            let memory = world.chunks[place.chunk()].clone();
            let packet = Packet {
                since: world.begun,
                place,
                memory: memory.expect("the ring's memory is there"),
                ring,
            };
            world.packets.push(packet);
        }
    }

    /// What must always be true.
    fn check(&self) {
        let world = self.world.borrow();
        for packet in &world.packets {
            assert!(packet.is_safe(&world), "{:?} under a packet", packet.place);
        }
        let places: BTreeSet<_> = self.vips.iter().flatten().map(|(place, _)| place).collect();
        assert_eq!(places.len(), self.vips.iter().flatten().count());
        assert_eq!(places.len(), self.store.in_use() as usize);
        for (place, ring) in self.vips.iter().flatten() {
            assert!(world.chunks[place.chunk()].is_some());
            assert_eq!(
                [0, 1, 2].map(|slot| self.store.slot(*place, slot)),
                [*ring; 3]
            );
        }
        for (index, chunk) in self.store.chunks.iter().enumerate() {
            match (chunk, &world.chunks[index]) {
                _ if self.store.busy.contains(&index) => {}
                (Some(own), Some(seen)) => assert!(Rc::ptr_eq(&own.0, &seen.0), "{index}"),
                (own, seen) => {
                    assert!(own.is_none(), "packets find no chunk {index}");
                    assert_eq!(seen.is_some(), world.left.contains(&index), "{index}");
                }
            }
        }
        assert!(self.store.capacity() >= self.store.in_use() + SPARE);
        for (index, chunk) in self.store.chunks.iter().enumerate() {
            let held = places.iter().filter(|place| place.chunk() == index).count();
            assert_eq!(self.store.held[index] as usize, held);
            let busy = self.store.busy.contains(&index);
            let is_idle = chunk.is_some() && held == 0 && !busy && index > 0;
            assert_eq!(self.store.idle.contains(&index), is_idle, "{index}");
            let is_unmade = chunk.is_none() && !busy;
            assert_eq!(self.store.unmade.contains(&index), is_unmade, "{index}");
        }
    }
}

#[test]
fn updates_that_packets_keep_up_with_need_no_more_memory() {
    let mut balancer = Balancer::new();
    for _ in 0..100 {
        balancer.update(0).unwrap();
        balancer.packet(0);
        balancer.world.borrow_mut().packets.drain(..).for_each(drop);
        balancer.world.borrow_mut().pass();
        balancer.check();
    }
    assert_eq!(balancer.store.capacity(), RINGS_PER_CHUNK);
    assert_eq!(balancer.world.borrow().waits, 0);
}

#[test]
fn a_surge_gets_its_places_and_gives_them_back() {
    let mut balancer = Balancer::new();
    balancer.update(0).unwrap();
    let mut since_wait = 0;
    for _ in 0..200 {
        // A packet that never ends: moments pass only by waiting.
        balancer.packet(0);
        let waits = balancer.world.borrow().waits;
        balancer.update(0).unwrap();
        balancer.check();
        since_wait += 1;
        if balancer.world.borrow().waits > waits {
            // The first wait comes before the surge's places.
            assert!(
                since_wait >= if waits == 0 { SPARE } else { SURGE },
                "{since_wait}"
            );
            since_wait = 0;
            balancer.world.borrow_mut().finish();
        }
    }
    assert_eq!(balancer.world.borrow().waits, 3);
    let places = balancer.store.capacity();
    assert!(
        (1 + SURGE..1 + SURGE + RINGS_PER_CHUNK).contains(&places),
        "{places}"
    );

    balancer.world.borrow_mut().packets.clear();
    balancer.world.borrow_mut().pass();
    balancer.world.borrow_mut().now += SURGE_ENDS / 2;
    balancer.update(0).unwrap();
    balancer.world.borrow_mut().finish();
    assert_eq!(balancer.store.capacity(), places, "not over yet");
    balancer.world.borrow_mut().pass();
    balancer.world.borrow_mut().now += SURGE_ENDS;
    // The update uses the lowest place, so the chunks above become empty.
    for _ in 0..3 {
        balancer.update(0).unwrap();
        balancer.world.borrow_mut().finish();
        balancer.world.borrow_mut().pass();
        balancer.check();
    }
    assert_eq!(balancer.store.capacity(), 2 * RINGS_PER_CHUNK);
}

#[test]
fn all_vips_can_come_while_a_surge_is_seen_to() {
    let mut balancer = Balancer::new();
    for _ in 0..SURGE_BEGINS + 2 {
        balancer.update(0).unwrap();
    }
    assert!(!balancer.store.busy.is_empty());
    for vip in 1..VIPS {
        balancer.update(vip).unwrap();
        balancer.check();
    }
    balancer.world.borrow_mut().finish();
    balancer.update(0).unwrap();
    balancer.check();
}

#[test]
fn all_vips_can_come_back_while_what_they_left_is_given_back() {
    let mut balancer = Balancer::new();
    for round in 0..8 {
        for vip in 0..VIPS {
            balancer.update(vip).unwrap();
        }
        balancer.world.borrow_mut().finish();
        if round > 2 {
            balancer.world.borrow_mut().pass();
        }
    }
    let most = balancer.store.capacity();
    assert!(most > VIPS as u32 + SURGE, "{most}");
    for vip in 0..VIPS {
        balancer.remove(vip);
    }
    balancer.world.borrow_mut().pass();
    balancer.world.borrow_mut().now += 2 * SURGE_ENDS;
    balancer.update(0).unwrap();
    assert!(!balancer.store.busy.is_empty());
    for vip in 1..VIPS {
        balancer.update(vip).unwrap();
        balancer.check();
    }
}

#[test]
fn a_refusal_costs_nothing_but_the_change() {
    let mut balancer = Balancer::new();
    balancer.update(0).unwrap();
    balancer.world.borrow_mut().refuses = true;
    // Another VIP would need another chunk to have spare places.
    assert!(matches!(balancer.update(1), Err(Error::Kernel { .. })));
    balancer.check();
    // Updates need no memory, but eventually a grace period.
    for _ in 0..SPARE {
        balancer.packet(0);
        balancer.update(0).unwrap();
        balancer.world.borrow_mut().finish();
        balancer.check();
    }
    assert!(matches!(balancer.update(0), Err(Error::Kernel { .. })));
    balancer.check();
    balancer.world.borrow_mut().refuses = false;
    balancer.update(0).unwrap();
    balancer.update(1).unwrap();
    balancer.check();
}

#[test]
fn chunks_that_a_refusal_took_away_in_part_are_all_given_up() {
    for meanwhile in [false, true] {
        let mut balancer = Balancer::new();
        balancer.update(0).unwrap();
        balancer
            .store
            .reserve(&balancer.kernel, VIPS as u32)
            .unwrap();
        let places = balancer.store.capacity();
        balancer.world.borrow_mut().refuses = true;
        if meanwhile {
            balancer.store.trim_later();
            balancer.world.borrow_mut().now += 2 * SURGE_ENDS;
            balancer.store.collect(&balancer.kernel);
            balancer.world.borrow_mut().finish();
            balancer.store.collect(&balancer.kernel);
        } else {
            let trimmed = balancer.store.trim(&balancer.kernel);
            assert!(matches!(trimmed, Err(Error::Kernel { .. })));
        }
        assert!(!balancer.world.borrow().left.is_empty());
        assert!(balancer.store.capacity() < places);
        balancer.check();
        balancer.world.borrow_mut().refuses = false;
        for vip in 1..VIPS {
            balancer.update(vip).unwrap();
            balancer.packet(vip);
            balancer.check();
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Update(usize),
    Remove(usize),
    Packet(usize),
    PacketsEnd(usize),
    Pass,
    Finish,
    Reserve(u32),
    Trim,
    Refuse(bool),
    Later,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => (0..VIPS).prop_map(Operation::Update),
        8 => (0..2_usize).prop_map(Operation::Update),
        2 => (0..VIPS).prop_map(Operation::Remove),
        8 => (0..VIPS).prop_map(Operation::Packet),
        2 => (0..4_usize).prop_map(Operation::PacketsEnd),
        3 => Just(Operation::Pass),
        2 => Just(Operation::Finish),
        1 => (0..VIPS as u32).prop_map(Operation::Reserve),
        1 => Just(Operation::Trim),
        1 => prop::bool::weighted(0.3).prop_map(Operation::Refuse),
        1 => Just(Operation::Later),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_place_is_used_again_under_a_packet(operations in prop::collection::vec(operation(), 0..300)) {
        let mut balancer = Balancer::new();
        for operation in operations {
            let world = Rc::clone(&balancer.world);
            match operation {
                Operation::Update(vip) => {
                    let refuses = world.borrow().refuses;
                    let updated = balancer.update(vip);
                    prop_assert!(updated.is_ok() || refuses, "{updated:?}");
                }
                Operation::Remove(vip) => balancer.remove(vip),
                Operation::Packet(vip) => balancer.packet(vip),
                Operation::PacketsEnd(first) => {
                    let mut world = world.borrow_mut();
                    let first = first.min(world.packets.len());
                    world.packets.drain(..first);
                }
                Operation::Pass => world.borrow_mut().pass(),
                Operation::Finish => {
                    if world.borrow().finished.is_none() {
                        world.borrow_mut().finish();
                    }
                }
                Operation::Reserve(rings) => {
                    let before = balancer.store.capacity();
                    let reserved = balancer.store.reserve(&balancer.kernel, rings);
                    if reserved.is_err() {
                        prop_assert_eq!(balancer.store.capacity(), before);
                    }
                }
                Operation::Trim => {
                    let _ = balancer.store.trim(&balancer.kernel);
                }
                Operation::Refuse(refuses) => world.borrow_mut().refuses = refuses,
                Operation::Later => world.borrow_mut().now += SURGE_ENDS * 2,
            }
            balancer.check();
        }
    }
}
