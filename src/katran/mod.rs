//! The balancer as its owner sees it. One file an area of calls; all of them change the table
//! first on paper, then the kernel, then for good.

mod adopt;
mod apply;
mod attach;
mod change;
mod counters;
mod decap;
mod details;
mod diagnose;
mod down;
mod events;
mod explain;
mod explained;
mod flow_count;
mod flows;
mod follow;
mod gateway;
mod global_flows;
mod ground;
mod handles;
mod health;
mod keeper;
mod load;
mod looks;
mod loss;
mod names;
mod object;
mod pinned;
mod reals;
mod reload;
mod remember;
mod repair;
mod replace;
mod server_ids;
mod sizes;
mod slots;
mod source_routes;
mod still_attached;
mod vips;
mod watch;

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
use crate::config::Builder;
use crate::config::Config;
use crate::config::Machine;
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

/// A loaded balancer: the program in the kernel, its maps, and where it is attached.
///
/// Loading attaches nothing. Dropping it detaches what it attached and frees everything; a
/// process that dies does the same. Unless it is [pinned](Builder::pin): then all that packets see stays as it is
/// until it is [removed](Self::remove). Methods that change something take `&mut self`, those that
/// read take `&self`; it is [`Send`] and [`Sync`]. After a change threads of the library's own may
/// live for some milliseconds, to see when no packet uses what was replaced; after a real went, one for
/// as long as its entries are taken out of the flow tables, which may be seconds. Dropping the handle
/// has that one stop and waits for it, some milliseconds. `docs/embedding.md` lists all threads.
///
/// It belongs to the process that has loaded it. In a child made by fork(2) dropping it changes nothing on
/// the network; all other calls are for the process that has loaded it.
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
    /// While this lives a state that was applied in part is being undone: not after a panic has cut that off.
    undoing: Weak<()>,
    fixed: object::Fixed,
    ring_size: RingSize,
    /// How many VIPs there are of those that need lookups of their own.
    kinds: VipKinds,
    /// The ring in force of each VIP, by its number.
    rings: Vec<Option<RingSlot>>,
    /// What the slots of each VIP's ring were before, where some are unsettled.
    histories: Vec<Option<slots::History>>,
    settler: Settler<MappedChunk>,
    /// Numbers that packets may still see until a moment has passed, oldest first.
    given_back: VecDeque<(Moment, GivenBack)>,
    /// The same of probes.
    probes_given_back: VecDeque<(Moment, u32)>,
    /// Reals that are gone, by their numbers: packets may read their hops until a moment has passed.
    left_hops: VecDeque<(Moment, Vec<u16>)>,
    /// When the outer sources were set last: packets may read what was set before until it has passed.
    sources_set: Moment,
    // Detached before the maps go.
    attachments: Attachments<XdpLink>,
    shared: Attachments<Entry>,
    /// What threads that watch them know.
    losses: Arc<loss::Board>,
    /// Entries of arrays that are not where an owner before had them.
    lost: Vec<LostEntry>,
    /// Finds out next hops, if any have to be.
    following: follow::Following,
    /// The path of health checks, if there is an interface for it.
    healthchecks: Option<HealthChecks>,
    /// Tells packets the longest frame, and which frames are for this station.
    links: Links,
    maps: Maps,
    programs: object::Programs,
    /// Whether the program's descriptor has been given to the embedder.
    handed_out: AtomicBool,
    /// The programs before the last reload, if packets may still enter them by such a descriptor.
    replaced: Option<object::Programs>,
    /// Programs of reloads that have failed, which an interface has kept.
    stranded: Vec<object::Programs>,
    /// What carries the counters of programs before to those that there are.
    carriers: Vec<Carrier>,
    /// One frame at a time through the explaining twin.
    explaining: Mutex<()>,
    kernel: KernelCalls,
    rejected_addresses: AtomicU64,
    watch: Option<watch::Watch>,
    /// A monitor listens.
    monitored: Arc<AtomicBool>,
    events_switch: Arc<Switch>,
    callbacks: watch::Callbacks,
    /// Where changes are written down, if the balancer is to outlive the process.
    ledger: Option<Ledger>,
    /// Gives signs of life, and hands the balancer over, while it is pinned.
    keeper: Option<Keeper>,
    /// Where it is pinned. The last one, as the next owner may come when it is given up.
    home: Option<Home>,
}

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

    /// Gives it a path for health checks that is loaded.
    fn put_healthchecks(&mut self, checks: Option<HealthChecks>) {
        self.healthchecks = checks;
        self.write_gateway_macs(self.wanted());
    }

    /// Settings to load a balancer with, all at their defaults.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The program that is attached, for embedders with an attachment mechanism of their own.
    ///
    /// A [`reload`](Self::reload) makes another one and does not know where this one has been attached:
    /// there it works on, with the features that it had, until the next reload,
    /// [`release_replaced_program`](Self::release_replaced_program) or the end of the balancer. So after
    /// each reload put the new descriptor in its place. So, too, after an [`apply`](Self::apply) that replaces programs and
    /// maps: until then the one before stands still there, with the VIPs, weights and down marks of that moment, and the
    /// numbers of reals that have gone since may be others'.
    #[doc(alias = "getKatranProgFd")]
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.handed_out.store(true, Ordering::Relaxed);
        self.programs.main.as_fd()
    }

    /// A map of the program by its name, for embedders that read it themselves; `None` if there
    /// is none of that name. Names are those of [`MemoryEstimate`](crate::stats::MemoryEstimate).
    ///
    /// Whoever writes to one gives up what this library promises.
    #[doc(alias = "getBpfMapFdByName")]
    pub fn map_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        if name == "special_programs" {
            return Some(self.programs.special.as_fd());
        }
        let of_probes = self.healthchecks.iter().flat_map(HealthChecks::maps);
        let mut named = self.maps.named().into_iter().chain(of_probes);
        named.find(|(of, _)| *of == name).map(|(_, map)| map)
    }

    /// By what the table of maps sizes them.
    fn machine(&self) -> Machine<'_> {
        Machine {
            config: &self.config,
            cpus: self.fixed.possible_cpus,
        }
    }

    /// Ends a change that is in force: if the next one could not be at once, it waits now and not
    /// then.
    fn make_ready(&mut self) {
        if self.maps.rings.is_full() {
            // A refusal has been logged, and the next change is told.
            let _ = self.settle();
        }
    }

    /// Takes back, without waiting, what no packet sees any more. Returns the moment that has passed.
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

    /// Waits until no packet sees what has been let go of.
    fn settle(&mut self) -> Result<()> {
        self.maps.rings.settle(&self.kernel)?;
        self.take_back();
        Ok(())
    }

    /// Counts an address that was refused.
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
