//! QUIC by connection id, with traffic of an independent implementation (quinn): connections whose
//! client changes port stay with their server, whatever the ring says.

use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use katran::Flow;
use katran::Real;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran_lab::Host;
use katran_lab::LabConfig;
use quinn::ClientConfig;
use quinn::Connection;
use quinn::ConnectionId;
use quinn::ConnectionIdGenerator;
use quinn::Endpoint;
use quinn::EndpointConfig;
use quinn::ServerConfig;
use quinn::TokioRuntime;
use quinn::TransportConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::site;
use crate::site::Site;

const PORT: u16 = 443;
const NAME: &str = "service.example";
const CONNECTIONS: usize = 12;
/// How long a busy machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that must not come.
const IN_VAIN: Duration = Duration::from_secs(1);

/// Connection id version and server id of each backend: all versions, and the top bit.
const IDS: [(u8, u32); 3] = [(1, 1000), (2, 70_000), (3, 0x8000_0007)];

/// Connection ids of eight bytes with a server id; the rest is random, as a server's would be.
struct Ids {
    version: u8,
    server: u32,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        let id = self.server.to_be_bytes();
        match self.version {
            1 => {
                bytes[0] = id[2] >> 2;
                bytes[1] = id[2] << 6 | id[3] >> 2;
                bytes[2] = id[3] << 6 | bytes[2] & 0x3f;
            }
            2 => bytes[1..4].copy_from_slice(&id[1..]),
            _ => bytes[1..5].copy_from_slice(&id),
        }
        bytes[0] = bytes[0] & 0x3f | self.version << 6;
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// For both ends: a certificate and its key, and how to send.
struct Settings {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    transport: Arc<TransportConfig>,
}

impl Settings {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        let mut transport = TransportConfig::default();
        // Datagrams as written: no segmentation offload and no path MTU discovery.
        transport
            .enable_segmentation_offload(false)
            .mtu_discovery_config(None)
            .max_idle_timeout(Some(PATIENCE.try_into().unwrap()));
        Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
            transport: Arc::new(transport),
        }
    }

    fn server(&self) -> ServerConfig {
        let key = PrivateKeyDer::try_from(self.key.clone()).unwrap();
        let mut config =
            ServerConfig::with_single_cert(vec![self.certificate.clone()], key).unwrap();
        config.transport_config(Arc::clone(&self.transport));
        config
    }

    fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        config.transport_config(Arc::clone(&self.transport));
        config
    }
}

fn socket(host: &Host, address: SocketAddr) -> UdpSocket {
    host.run(|| UdpSocket::bind(address).unwrap())
}

/// A server that answers each stream with its name.
fn serve(
    runtime: &Runtime,
    settings: &Settings,
    host: &Host,
    address: SocketAddr,
    (version, server): (u8, u32),
) -> Endpoint {
    let _inside = runtime.enter();
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(Ids { version, server }));
    let socket = socket(host, address);
    let runtime_of_quinn = Arc::new(TokioRuntime);
    let endpoint =
        Endpoint::new(config, Some(settings.server()), socket, runtime_of_quinn).unwrap();
    let (accepting, name) = (endpoint.clone(), host.name().to_owned());
    runtime.spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else {
                    return;
                };
                while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                    let _ = receive.read_to_end(1 << 16).await;
                    let _ = send.write_all(name.as_bytes()).await;
                    let _ = send.finish();
                }
            });
        }
    });
    endpoint
}

/// A client with a connection, and its server's name.
struct Client {
    endpoint: Endpoint,
    connection: Connection,
    server: String,
}

impl Client {
    async fn connect(settings: &Settings, from: UdpSocket, to: SocketAddr) -> Self {
        let config = EndpointConfig::default();
        let endpoint = Endpoint::new(config, None, from, Arc::new(TokioRuntime)).unwrap();
        let connecting = endpoint.connect_with(settings.client(), to, NAME).unwrap();
        let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
        let server = ask(&connection, PATIENCE).await.unwrap();
        Self {
            endpoint,
            connection,
            server,
        }
    }

    /// The same connection, from another port.
    async fn ask_from(&self, from: UdpSocket, patience: Duration) -> Option<String> {
        self.endpoint.rebind(from).unwrap();
        ask(&self.connection, patience).await
    }
}

/// The server's name; `None` if no answer comes.
async fn ask(connection: &Connection, patience: Duration) -> Option<String> {
    let question = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        send.write_all(&[b'?'; 5000]).await.ok()?;
        send.finish().ok()?;
        receive.read_to_end(1 << 10).await.ok()
    };
    let answer = timeout(patience, question).await.ok()??;
    String::from_utf8(answer).ok()
}

#[test]
fn connections_that_change_their_port_stay_with_their_server() {
    let mut site = Site::new(LabConfig {
        backends: IDS.len(),
        ..LabConfig::default()
    });
    let settings = Settings::new();
    let runtime = Runtime::new().unwrap();
    for (address, client) in [
        (site.lab.vip4(), "192.0.2.2"),
        (site.lab.vip6(), "2001:db8:c::2"),
    ] {
        let vip = Vip::udp((address, PORT).into());
        let to = site::service(vip);
        let local = SocketAddr::new(client.parse().unwrap(), 0);
        let reals = site::reals(&site.lab, address);
        site.katran.add_vip(vip, VipFlags::QUIC).unwrap();
        for real in &reals {
            site.katran.add_real(vip, Real::new(*real)).unwrap();
        }
        let ids: Vec<u32> = IDS.iter().map(|(_, id)| *id).collect();
        let named = ids.iter().zip(&reals);
        let named: Vec<_> = named.map(|(id, real)| ServerId::new(*id, *real)).collect();
        site.katran.server_ids_mut().add(&named).unwrap();
        let before = site.katran.stats().quic().unwrap();

        let backends = site.lab.backends.iter().zip(IDS);
        let servers: Vec<Endpoint> = backends
            .map(|(backend, ids)| serve(&runtime, &settings, &backend.host, to, ids))
            .collect();
        let mut clients = Vec::new();
        for real in &reals {
            site.turn_to(vip, *real);
            for _ in 0..CONNECTIONS / IDS.len() {
                let from = socket(&site.lab.client, local);
                let client = runtime.block_on(Client::connect(&settings, from, to));
                assert_eq!(client.server, site::backend_at(&site.lab, *real));
                clients.push(client);
            }
        }

        for real in &reals {
            site.turn_to(vip, *real);
            for client in &clients {
                let from = socket(&site.lab.client, local);
                // To the balancer this is a new flow, which the ring would send to that backend.
                let flow = Flow::udp(from.local_addr().unwrap(), to);
                let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
                assert_eq!(answer.real, Some(*real));
                let server = runtime.block_on(client.ask_from(from, PATIENCE));
                assert_eq!(server.as_ref(), Some(&client.server));
            }
        }
        let after = site.katran.stats().quic().unwrap();
        assert!(after.cid_initial - before.cid_initial >= CONNECTIONS as u64);
        assert!(after.cid_routed - before.cid_routed >= 4 * CONNECTIONS as u64);
        assert!(after.cid_v1 > before.cid_v1);
        assert!(after.cid_v2 > before.cid_v2);
        assert!(after.cid_v3 > before.cid_v3);
        assert!(after.dst_not_found_in_lru > before.dst_not_found_in_lru);
        assert_eq!(after.cid_invalid_server_id, before.cid_invalid_server_id);
        assert_eq!(after.cid_unknown_real_dropped, 0);
        let counters = site.katran.stats().vip(vip).unwrap();
        assert!(counters.server_id_new >= CONNECTIONS as u64);

        // The id decided: once invalidated, the ring does, and its server does not know the
        // connection.
        site.katran.server_ids_mut().invalidate(&ids).unwrap();
        let _ = site.katran.flows_mut().purge(vip).unwrap();
        let lost = clients.iter().find(|of| of.server != "backend2").unwrap();
        let from = socket(&site.lab.client, local);
        assert_eq!(runtime.block_on(lost.ask_from(from, IN_VAIN)), None);
        let invalid = site.katran.stats().quic().unwrap().cid_invalid_server_id;
        assert!(invalid > after.cid_invalid_server_id);
        site.katran.server_ids_mut().revalidate(&ids).unwrap();
        let from = socket(&site.lab.client, local);
        let again = runtime.block_on(Client::connect(&settings, from, to));
        assert_eq!(again.server, "backend2");

        for endpoint in &servers {
            endpoint.close(0u32.into(), b"");
        }
        site.katran.server_ids_mut().remove(&ids).unwrap();
        site.katran.remove_vip(vip).unwrap();
    }
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}
