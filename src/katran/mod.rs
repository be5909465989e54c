//! The balancer's handle. Each file holds one area of calls. Every change is worked out on the
//! table first, then made in the kernel, then committed.

// Method blocks appear in the documentation in this order, which rustfmt keeps between blank lines.
mod load;

mod attach;

mod vips;

mod reals;

mod down;
mod slots;

mod apply;
mod replace;

mod reload;

mod gateway;

mod counters;
mod flow_count;
mod flows;
mod global_flows;

mod explain;

mod diagnose;

mod events;
mod watch;

mod health;

mod server_ids;
mod source_routes;

mod decap;

mod pinned;

mod keeper;

mod adopt;
mod change;
mod details;
mod explained;
mod follow;
mod ground;
mod handles;
mod looks;
mod loss;
mod names;
mod object;
mod remember;
mod repair;
mod sizes;
mod still_attached;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use adopt::Start;
pub use counters::Stats;
pub use counters::StatsMut;
pub use decap::InlineDecap;
pub use decap::InlineDecapMut;
pub use events::Events;
pub use explained::Answer;
pub use explained::Choice;
pub use explained::Reason;
pub use explained::Simulation;
pub use explained::Verdict;
pub use flow_count::FlowCount;
pub use flows::FlowEntry;
pub use flows::FlowStats;
pub use flows::Flows;
pub use flows::FlowsMut;
pub use gateway::Gateways;
pub use gateway::GatewaysMut;
pub use global_flows::GlobalFlows;
pub use global_flows::GlobalFlowsMut;
pub use health::Probes;
pub use health::ProbesMut;
pub use loss::AttachedTo;
pub use loss::AttachmentChange;
pub use loss::AttachmentWatch;
pub use server_ids::ServerIds;
pub use server_ids::ServerIdsMut;
pub use source_routes::SourceRoutes;
pub use source_routes::SourceRoutesMut;
pub use watch::CallbackId;

use crate::attach::Attachments;
use crate::attach::Entry;
use crate::attach::XdpLink;
use crate::config::Config;
use crate::config::Machine;
use crate::diagnose::Look;
use crate::diagnose::Recent;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::kernel::KernelCalls;
use crate::ledger::Ledger;
use crate::links::Links;
use crate::maps::Carrier;
use crate::maps::MappedChunk;
use crate::maps::Moment;
use crate::maps::RingSlot;
use crate::maps::Settler;
use crate::maps::VipKinds;
use crate::monitor::Switch;
use crate::pins::Home;
use crate::ring::RingSize;
use crate::table::GivenBack;
use crate::table::Names;
use crate::table::Table;
use crate::types::DecapMode;
use crate::types::Prefix;
use handles::Maps;
use keeper::Keeper;
use still_attached::LostEntry;

/// A loaded balancer: its program in the kernel, its maps and its attachments.
///
/// [`Builder::load`](crate::Builder::load) makes one, attached to nothing; [`attach`](Self::attach)
/// puts it on an interface. Dropping the handle detaches everything and frees it, and so does the
/// death of the process. A [pinned](crate::Builder::pin) balancer keeps forwarding in both cases,
/// until you [remove](Self::remove) it.
///
/// Methods that change something take `&mut self`, those that read take `&self`. The handle is
/// [`Send`] and [`Sync`].
///
/// After a change the library may run threads for a short time: some milliseconds, until no packet
/// uses what was replaced; up to some seconds after a real is removed, to take its entries out of
/// the flow tables. Dropping the handle stops that last thread and waits for it, some milliseconds.
/// `docs/embedding.md` lists all threads.
///
/// A balancer belongs to the process that loaded it. A child made by fork(2) may drop the handle,
/// which changes nothing on the network, and must not make any other call.
///
/// ```no_run
/// use katran::Katran;
/// use katran::Real;
/// use katran::Vip;
/// use katran::VipFlags;
/// use katran::XdpMode;
///
/// let mut katran = Katran::builder()
///     .gateway_mac("0a:00:00:00:00:fe".parse()?)
///     .load()?;
/// let vip = Vip::tcp("203.0.113.1:443".parse().unwrap());
/// katran.add_vip(vip, VipFlags::empty())?;
/// katran.add_real(vip, Real::new("198.51.100.1".parse().unwrap()))?;
/// let attachment = katran.attach("eth0", XdpMode::Auto)?;
/// println!("balancing on {} in {} mode", attachment.interface, attachment.mode);
/// # Ok::<(), katran::Error>(())
/// ```
#[doc(alias = "KatranLb")]
#[must_use = "a balancer that is not pinned is gone when its handle is dropped"]
pub struct Katran {
    config: Config,
    table: Table,
    server_ids: Names<u32>,
    invalid_ids: BTreeSet<u32>,
    source_routes: Names<Prefix>,
    decap: BTreeMap<IpAddr, DecapMode>,
    /// Alive while a partly applied state is being undone, except after a panic interrupted that.
    undoing: Weak<()>,
    fixed: object::Fixed,
    ring_size: RingSize,
    /// How many VIPs need each of the additional lookups.
    kinds: VipKinds,
    /// Each VIP's current ring, by the VIP's number.
    rings: Vec<Option<RingSlot>>,
    /// The earlier reals of each VIP's slots, where some are unsettled.
    histories: Vec<Option<slots::History>>,
    settler: Settler<MappedChunk>,
    /// Numbers that packets may still see until a moment has passed, oldest first.
    given_back: VecDeque<(Moment, GivenBack)>,
    /// The same for probes.
    probes_given_back: VecDeque<(Moment, u32)>,
    /// Numbers of removed reals: packets may read their hops until a moment has passed.
    left_hops: VecDeque<(Moment, Vec<u16>)>,
    /// When the outer sources were last set: packets may read the earlier ones until it has passed.
    sources_set: Moment,
    // Declared, and so dropped, before the maps.
    attachments: Attachments<XdpLink>,
    shared: Attachments<Entry>,
    /// What the threads that watch attachments know.
    losses: Arc<loss::Board>,
    /// Entries of arrays that are no longer where an earlier owner had them.
    lost: Vec<LostEntry>,
    /// Discovers next hops, if needed.
    following: follow::Following,
    /// The health-check path, if an interface is set for it.
    healthchecks: Option<HealthChecks>,
    /// Tells packets the longest frame, and which frames are for this station.
    links: Links,
    maps: Maps,
    programs: object::Programs,
    /// Whether the embedder has been given the program's descriptor.
    handed_out: AtomicBool,
    /// The programs before the last reload, if packets may still reach them through that
    /// descriptor.
    replaced: Option<object::Programs>,
    /// Programs of failed reloads that an interface has kept.
    stranded: Vec<object::Programs>,
    /// Carry the counters of earlier programs over to the current ones.
    carriers: Vec<Carrier>,
    /// Lets one frame at a time through the explaining twin.
    explaining: Mutex<()>,
    kernel: KernelCalls,
    rejected_addresses: AtomicU64,
    /// The counters of earlier looks, for diagnoses.
    recent: Mutex<Recent>,
    watch: Option<watch::Watch>,
    /// Whether a monitor listens.
    monitored: Arc<AtomicBool>,
    events_switch: Arc<Switch>,
    callbacks: watch::Callbacks,
    /// The log of changes, for a balancer that outlives its process.
    ledger: Option<Ledger>,
    /// Gives signs of life and hands the balancer over, while it is pinned.
    keeper: Option<Keeper>,
    /// Where it is pinned. Last, because dropping it admits the next owner.
    home: Option<Home>,
}

/// # Descriptors
impl Katran {
    fn new(
        config: Config,
        fixed: object::Fixed,
        ring_size: RingSize,
        programs: object::Programs,
        maps: Maps,
        healthchecks: Option<HealthChecks>,
    ) -> Self {
        let tenure = maps.live.tenure();
        let settler = Settler::new(fixed.tick, Arc::clone(tenure));
        let kernel = KernelCalls::new(Arc::clone(tenure));
        let events_switch = Arc::new(Switch::new(&maps.live));
        let katran = Self {
            table: Table::new(config.max_vips, config.max_reals),
            server_ids: Names::new(config.max_server_ids),
            invalid_ids: BTreeSet::new(),
            source_routes: Names::new(config.max_source_routes),
            decap: BTreeMap::new(),
            undoing: Weak::new(),
            fixed,
            ring_size,
            kinds: VipKinds::default(),
            rings: vec![None; config.max_vips.into()],
            histories: vec![None; config.max_vips.into()],
            settler,
            given_back: VecDeque::new(),
            probes_given_back: VecDeque::new(),
            left_hops: VecDeque::new(),
            sources_set: Moment::default(),
            attachments: Attachments::default(),
            losses: Arc::default(),
            shared: Attachments::default(),
            lost: Vec::new(),
            following: follow::Following::default(),
            healthchecks,
            links: Links::new(
                config.max_frame,
                config.encapsulation,
                Arc::clone(&maps.live),
            ),
            maps,
            programs,
            handed_out: AtomicBool::new(false),
            replaced: None,
            stranded: Vec::new(),
            carriers: Vec::new(),
            explaining: Mutex::new(()),
            kernel,
            rejected_addresses: AtomicU64::new(0),
            recent: Mutex::new(Recent::begin(Instant::now(), Look::default())),
            watch: None,
            monitored: Arc::default(),
            events_switch,
            callbacks: watch::Callbacks::default(),
            ledger: None,
            keeper: None,
            home: None,
            config,
        };
        katran.write_gateways(katran.wanted());
        katran
    }

    fn put_healthchecks(&mut self, checks: Option<HealthChecks>) {
        self.healthchecks = checks;
        self.write_gateway_macs(self.wanted());
    }

    /// The attached program, for embedders that attach it themselves.
    ///
    /// A [`reload`](Self::reload) makes another program and cannot know where you attached this
    /// one. There the old program keeps running, with its own features, until the next reload,
    /// [`release_replaced_program`](Self::release_replaced_program) or the end of the balancer.
    /// After each reload attach the new descriptor instead.
    ///
    /// Do so as well after an [`apply`](Self::apply) that replaces programs and maps. Until then
    /// the old program forwards with the VIPs, weights and down marks as they were then, and the
    /// numbers of reals removed since then may belong to other reals.
    #[doc(alias = "getKatranProgFd")]
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.handed_out.store(true, Ordering::Relaxed);
        self.programs.main.as_fd()
    }

    /// A map of the program by name, for embedders that read it themselves; `None` if there is no
    /// such map. [`MemoryEstimate`](crate::stats::MemoryEstimate) lists the names.
    ///
    /// If you write to a map, none of this library's guarantees hold.
    #[doc(alias = "getBpfMapFdByName")]
    pub fn map_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        if name == "special_programs" {
            return Some(self.programs.special.as_fd());
        }
        let of_probes = self.healthchecks.iter().flat_map(HealthChecks::maps);
        let mut named = self.maps.named().into_iter().chain(of_probes);
        named.find(|(of, _)| *of == name).map(|(_, map)| map)
    }

    /// The inputs to the table of maps' sizes.
    fn machine(&self) -> Machine<'_> {
        Machine {
            config: &self.config,
            cpus: self.fixed.possible_cpus,
        }
    }

    /// Finishes a committed change: if the next one would have to wait, waits here instead.
    fn make_ready(&mut self) {
        if self.maps.rings.is_full() {
            // A refusal has been logged; the next change reports it.
            let _ = self.settle();
        }
    }

    /// Takes back, without waiting, what packets no longer see. Returns the latest moment that has
    /// passed.
    fn collect(&mut self) -> Moment {
        self.look_at_attachments();
        self.drop_settled();
        self.take_back()
    }

    fn take_back(&mut self) -> Moment {
        let passed = self.maps.rings.collect(&self.kernel);
        while let Some((moment, given_back)) = self.given_back.front()
            && *moment <= passed
        {
            self.table.settle(*given_back);
            self.given_back.pop_front();
        }
        while let Some((moment, number)) = self.probes_given_back.front()
            && *moment <= passed
        {
            if let Some(checks) = &mut self.healthchecks {
                checks.take_back(*number);
            }
            self.probes_given_back.pop_front();
        }
        self.clear_left_hops(passed);
        passed
    }

    /// Waits until no packet sees anything that was let go.
    fn settle(&mut self) -> Result<()> {
        self.maps.rings.settle(&self.kernel)?;
        self.take_back();
        Ok(())
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::InvalidAddress { .. }) = &result {
            self.rejected_addresses.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl fmt::Debug for Katran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Katran")
            .field("vips", &self.table.vips().len())
            .field("reals", &self.table.reals().len())
            .field("interfaces", &self.attachments)
            .finish_non_exhaustive()
    }
}
