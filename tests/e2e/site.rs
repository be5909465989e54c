//! The start of the tests: a lab with a decapsulator on each backend and an attached balancer, and
//! the few questions that most tests ask.

use std::env;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use katran::Builder;
use katran::Decap;
use katran::Flow;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::MacAddr;
use katran::Real;
use katran::RealChange;
use katran::RootProgram;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::Attachment;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::Newer;
use katran_lab::TCP_TIME_WAIT;
use katran_lab::TcpClient;
use katran_lab::UdpClient;
use katran_lab::allowed_cpus;
pub(crate) use katran_lab::eventually;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_lab::tcp_states;

/// The port of the services, unless a test needs several.
pub(crate) const PORT: u16 = 80;

/// How long a busy machine may take for something certain.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait for an answer that must not come.
const IN_VAIN: Duration = Duration::from_millis(300);

/// How tc programs are attached unless the test asks for more.
pub(crate) fn first_choice() -> TcHook {
    if Newer::Tcx.is_here() {
        TcHook::Tcx
    } else {
        TcHook::Clsact
    }
}

pub(crate) struct Site {
    // Programs must drop before the interfaces they are attached to.
    pub(crate) katran: Katran,
    pub(crate) decaps: Vec<Decap>,
    pub(crate) lab: Lab,
}

impl Site {
    /// A lab with its first balancer and all decapsulators in native mode.
    pub(crate) fn new(config: LabConfig) -> Self {
        Self::with(config, XdpMode::Native, |builder| builder)
    }

    /// A lab with everything in this mode and its balancer with these settings.
    pub(crate) fn with(
        config: LabConfig,
        mode: XdpMode,
        settings: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        require_root();
        let lab = Lab::new(config).unwrap();
        let decaps = decaps(&lab, mode);
        let (katran, attachment) = balancer(&lab, 0, mode, settings);
        assert_eq!(attachment.mode, mode);
        Self {
            katran,
            decaps,
            lab,
        }
    }

    /// Makes the balancer an entry of a pinned root program instead of attaching it directly.
    pub(crate) fn share(&mut self, path: &Path) {
        self.katran.detach("eth0").unwrap();
        let mut root = RootProgram::builder().load().unwrap();
        let host = &self.lab.balancers[0].host;
        host.run(|| root.attach("eth0", XdpMode::Native).unwrap());
        root.pin(path).unwrap();
        drop(root);
        self.katran.attach_shared(path, 2).unwrap();
    }

    /// Adds a VIP with reals, all of weight 1.
    pub(crate) fn add_service(&mut self, vip: Vip, reals: &[IpAddr]) {
        add_service(&mut self.katran, vip, reals);
    }

    /// Purges a VIP's flows and makes the ring lead new ones to this real only.
    pub(crate) fn turn_to(&mut self, vip: Vip, to: IpAddr) {
        for real in self.katran.reals(vip).unwrap() {
            let weight = u32::from(real.address() == to);
            let real = Real::new(real.address()).weight(weight);
            self.katran.add_real(vip, real).unwrap();
        }
        let _ = self.katran.flows_mut().purge(vip).unwrap();
    }

    /// The name of the backend that a packet of this flow, other than a SYN, would reach.
    pub(crate) fn expected(&self, flow: Flow) -> String {
        expected(&self.lab, &self.katran, flow)
    }

    /// Packets that the backends have unwrapped, by outer family.
    pub(crate) fn decapsulated(&self) -> (u64, u64) {
        let counters = self.decaps.iter().map(|decap| decap.counters().unwrap());
        counters.fold((0, 0), |(v4, v6), c| {
            (v4 + c.ipip_v4 + c.gue_v4, v6 + c.ipip_v6 + c.gue_v6)
        })
    }

    /// Connects until this backend has accepted.
    pub(crate) fn connect_to(&self, vip: Vip, backend: &str) -> TcpClient {
        for _ in 0..200 {
            let mut client = connect(&self.lab.client, vip);
            if client.ask("who").unwrap() == backend {
                return client;
            }
        }
        panic!("none of 200 connections went to {backend}");
    }

    /// The names that answer on this many new connections, in order.
    pub(crate) fn new_connections(&self, vip: Vip, number: usize) -> Vec<String> {
        (0..number)
            .map(|_| connect(&self.lab.client, vip).ask("who").unwrap())
            .collect()
    }

    /// Added to a failure's message.
    pub(crate) fn report(&self) -> String {
        let counters = self.katran.counters().unwrap();
        let decaps: Vec<_> = self.decaps.iter().map(Decap::counters).collect();
        format!("balancer: {counters:#?}\nbackends: {decaps:#?}")
    }
}

/// Loads a balancer with small tables and attaches it to one of the lab's balancer hosts.
pub(crate) fn balancer(
    lab: &Lab,
    index: usize,
    mode: XdpMode,
    settings: impl FnOnce(Builder) -> Builder,
) -> (Katran, Attachment) {
    let host = &lab.balancers[index];
    let mut katran = settings(small(MacAddr::new(host.gateway_mac)))
        .load()
        .unwrap();
    let attachment = host
        .host
        .run(|| katran.attach(&host.interface, mode).unwrap());
    (katran, attachment)
}

/// Settings with small tables that remember changed flows, in the flow table that the environment
/// variable `KATRAN_FLOW_TABLE` names (`make test` runs both).
pub(crate) fn small(gateway: MacAddr) -> Builder {
    let kind = env::var("KATRAN_FLOW_TABLE");
    Katran::builder()
        .flow_table(kind.map_or(FlowTableKind::default(), |kind| kind.parse().unwrap()))
        .flow_tracking(FlowTracking::Changed)
        .gateway_mac(gateway)
        .ring_size(4099)
        .flow_table_size(10_000)
}

/// A decapsulator on each backend.
pub(crate) fn decaps(lab: &Lab, mode: XdpMode) -> Vec<Decap> {
    lab.backends
        .iter()
        .map(|backend| {
            let mut decap = Decap::builder().load().unwrap();
            let attach = || decap.attach(&backend.interface, mode).unwrap();
            assert_eq!(backend.host.run(attach).mode, mode);
            decap
        })
        .collect()
}

/// Adds a VIP with reals, all of weight 1.
pub(crate) fn add_service(katran: &mut Katran, vip: Vip, reals: &[IpAddr]) {
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    // In one call: one by one, each would take slots from those before it.
    let reals = reals.iter().map(|real| RealChange::Add(Real::new(*real)));
    katran
        .modify_reals(vip, &reals.collect::<Vec<_>>())
        .unwrap();
}

/// Replaces the only real of a VIP.
pub(crate) fn replace_real(katran: &mut Katran, vip: Vip, old: IpAddr, new: IpAddr) {
    let changes = [RealChange::Remove(old), RealChange::Add(Real::new(new))];
    katran.modify_reals(vip, &changes).unwrap();
}

/// The name of the backend that a packet of this flow would reach.
pub(crate) fn expected(lab: &Lab, katran: &Katran, flow: Flow) -> String {
    let answer = katran.real_for_flow(&flow).unwrap().unwrap();
    backend_at(lab, answer.real.unwrap())
}

/// The name of the backend with this address.
pub(crate) fn backend_at(lab: &Lab, address: IpAddr) -> String {
    let backend = lab
        .backends
        .iter()
        .find(|backend| address == backend.v4 || address == backend.v6);
    backend.unwrap().host.name().to_owned()
}

/// Gives a host an address on `lo`, and waits until packets to it arrive: a kernel worker adds the
/// local route of an IPv6 address later (even with `nodad`).
pub(crate) fn add_to_lo(host: &Host, address: IpAddr) {
    let length = if address.is_ipv4() { 32 } else { 128 };
    host.ip(&format!("addr add {address}/{length} dev lo"))
        .unwrap();
    eventually_local(host, address, "lo");
}

/// Waits until packets to an interface's new address arrive.
pub(crate) fn eventually_local(host: &Host, address: IpAddr, interface: &str) {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let local = format!("local {address} dev {interface}");
    eventually("the address is a local one", || {
        let routes = host.ip(&format!("{family} route show table local"));
        routes.unwrap().contains(&local)
    });
}

/// The backends' addresses in `like`'s family.
pub(crate) fn reals(lab: &Lab, like: IpAddr) -> Vec<IpAddr> {
    let address = |backend: &katran_lab::Backend| match like {
        IpAddr::V4(_) => IpAddr::from(backend.v4),
        IpAddr::V6(_) => IpAddr::from(backend.v6),
    };
    lab.backends.iter().map(address).collect()
}

/// Where a VIP's clients connect.
pub(crate) fn service(vip: Vip) -> SocketAddr {
    (vip.address(), vip.port()).into()
}

/// A new connection, with a timeout for a busy machine.
pub(crate) fn connect(client: &Host, vip: Vip) -> TcpClient {
    let connection = TcpClient::connect(client, service(vip)).unwrap();
    connection.set_patience(PATIENCE).unwrap();
    connection
}

/// A UDP socket, with a timeout for a busy machine.
pub(crate) fn udp(client: &Host, vip: Vip) -> UdpClient {
    let socket = UdpClient::connect(client, service(vip)).unwrap();
    socket.set_patience(PATIENCE).unwrap();
    socket
}

/// The flow of a connection.
pub(crate) fn flow_of(connection: &TcpClient, vip: Vip) -> Flow {
    Flow::tcp(connection.local_addr().unwrap(), service(vip))
}

/// Asks where no answer must come. TCP keeps the question: its answer is the first to come once the
/// path is back.
pub(crate) fn ask_in_vain(connection: &mut TcpClient) {
    connection.set_patience(IN_VAIN).unwrap();
    assert_silent(connection.ask("anybody"));
    connection.set_patience(PATIENCE).unwrap();
}

/// Asks by UDP where no answer must come.
pub(crate) fn ask_udp_in_vain(socket: &UdpClient) {
    socket.set_patience(IN_VAIN).unwrap();
    assert_silent(socket.ask(b"anybody"));
    socket.set_patience(PATIENCE).unwrap();
}

fn assert_silent(answer: io::Result<String>) {
    let error = answer.unwrap_err();
    let late = matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    );
    assert!(late, "not silence but: {error}");
}

/// Waits until all the host's closed connections have sent their last acknowledgement (RFC 9293,
/// TIME-WAIT).
pub(crate) fn connections_end(host: &Host) {
    eventually("all connections end", || {
        let states = tcp_states(host).unwrap();
        states.iter().all(|state| *state == TCP_TIME_WAIT)
    });
}

/// The CPUs this process may use, by the kernel's numbers.
pub(crate) fn cpus() -> Vec<u32> {
    let allowed = allowed_cpus().into_iter();
    allowed.map(|cpu| cpu as u32).collect()
}

/// Keeps this thread, and those it starts, on the CPU on which the lab has clients' packets arrive.
/// Other packets to the balancer, such as answers to ARP, would otherwise now and then move a
/// client's packet to another CPU, whose table does not know the flow.
pub(crate) fn stay_on_one_cpu() -> u32 {
    let cpu = cpus()[0];
    stay_on(cpu as usize);
    cpu
}

/// Makes all packets of client and backends arrive on one CPU, as a network card would bring a flow
/// (and the ICMP errors about it, if it hashes well): they need the same flow table. This thread
/// stays there, too.
pub(crate) fn arrive_on_one_cpu(lab: &Lab) -> u32 {
    let cpu = stay_on_one_cpu();
    lab.router.receive_on_cpu("client", cpu).unwrap();
    for backend in &lab.backends {
        let interface = &backend.router_interface;
        lab.router.receive_on_cpu(interface, cpu).unwrap();
    }
    cpu
}
