//! Probes by a QUIC handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::ClientConfig;
use quinn::ConnectionError;
use quinn::Endpoint;
use quinn::EndpointConfig;
use quinn::TokioRuntime;
use quinn::crypto::rustls::QuicClientConfig;
use socket2::Type;

use super::super::check::Quic;
use super::super::check::invalid;
use super::super::outcome::Cause;
use super::Failure;
use super::Place;
use super::socket;
use super::tls;
use super::tls::Authorities;
use crate::error::Result;

/// How long to wait until the packet that closes the connection is sent.
const GOODBYE: Duration = Duration::from_millis(20);

/// A handshake that is ready to run.
pub(in crate::health) struct QuicProbe {
    config: ClientConfig,
    name: Option<String>,
}

impl QuicProbe {
    pub(super) fn new(quic: &Quic, authorities: &mut Authorities) -> Result<Self> {
        let mut config = tls::client(&quic.tls, authorities)?;
        tls::server_name(&quic.tls)?;
        let alpn = quic.alpn.iter();
        config.alpn_protocols = alpn.map(|name| name.as_bytes().to_vec()).collect();
        let config = QuicClientConfig::try_from(config);
        let config = config.map_err(|error| invalid("tls", "QUIC", error.to_string()))?;
        Ok(Self {
            config: ClientConfig::new(Arc::new(config)),
            name: quic.tls.server_name.clone(),
        })
    }

    pub(super) async fn ask(&self, place: Place) -> std::result::Result<(), Failure> {
        let socket = socket(place, Type::DGRAM)?;
        let any: SocketAddr = match place.to {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        socket.bind(&any.into()).map_err(Failure::not_sent)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket.into(), runtime);
        let endpoint = endpoint.map_err(Failure::not_sent)?;
        let address = place.to.ip().to_string();
        let name = self.name.as_deref().unwrap_or(&address);
        let connecting = endpoint.connect_with(self.config.clone(), place.to, name);
        let connecting = connecting.map_err(Failure::not_sent)?;
        let connected = connecting.await;
        let connection =
            connected.map_err(|error| Failure::Failed(cause(&error), format!("QUIC: {error}")))?;
        connection.close(0_u32.into(), b"");
        // Nobody waits for an answer to it.
        let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
        Ok(())
    }
}

fn cause(error: &ConnectionError) -> Cause {
    match error {
        ConnectionError::TimedOut => Cause::Timeout,
        ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => Cause::Closed,
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => Cause::Other,
        _ => Cause::Handshake,
    }
}
