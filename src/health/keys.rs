//! The keys of health checks in a document, for the reader and for `docs/health.md`.

use crate::document::Key;
#[cfg(test)]
use crate::document::NEEDED;
use crate::document::Section;
use crate::document::key_rows;
use crate::document::sections;

/// Keys of `[health]`, VIPs and reals.
const PROBE_KEYS: &[Key] = key_rows! {
    /// The port to probe.
    port: "port", Some("the VIP's"), "1 to 65,535";
    /// The time from a probe's end to the real's next probe.
    interval: "seconds", Some("2"), "0.01 to 3,600";
    /// The time for a whole answer.
    timeout: "seconds", Some("1"), "0.001 to 600";
    /// Successes in a row that bring a real back.
    rise: "probes", Some("2"), "1 to 100";
    /// Failures in a row that take a real out; a failing first probe does so at once.
    fall: "probes", Some("3"), "1 to 100";
};

/// Keys of `[health]` and VIPs.
const VIP_KEYS: &[Key] = key_rows! {
    /// `tunnel` sends probes to the VIP, encapsulated to the real; `direct` to the real's address.
    via: "choice", Some("`tunnel`"), "`tunnel` or `direct`";
    /// The largest random change of an interval.
    jitter: "percent", Some("10"), "0 to 50";
    /// If less than this share of the VIP's weight works, no further real is taken out.
    panic_threshold: "percent", Some("0: only if none works"), "0 to 100";
    /// Drained reals that work take flows while all others are down.
    drained_fallback: "boolean", Some("true"), "true or false";
    /// How long a real's weight climbs after it comes back or joins others. Refused for VIPs with
    /// the hash function `maglev`.
    slow_start: "seconds", Some("0: at once"), "0 to 3,600";
    /// The number of steps of that climb.
    slow_start_steps: "steps", Some("8"), "4 to 8";
};

/// Keys of HTTP requests, with and without TLS.
const HTTP_KEYS: &[Key] = key_rows! {
    /// The path, with the query if there is one.
    path: "text", Some("`/`"), "begins with `/`, up to 65,534 bytes, without spaces, `#`, `<` and `>`";
    /// The request's method.
    method: "choice", Some("`get`"), "`get` or `head`";
    /// The header `Host`.
    host: "text", Some("`server_name`, else the probed address and port"), "a name or address, optionally with a port";
    /// More request headers.
    headers: "list", Some("none"), "a list of lines such as `Accept: text/plain`";
    /// The accepted statuses.
    statuses: "list", Some("200 to 299"), "a list of numbers (`204`) and ranges (`\"200-299\"`), 100 to 999";
    /// A header that the answer must have, with text that its value must contain.
    answer_header: "text", Some("none"), "a line such as `X-State: ready`";
    /// Text that the body must contain.
    answer_body: "text", Some("none"), "any text";
    /// How much of the body to read.
    max_body: "bytes", Some("65,536"), "0 to 1,048,576";
};

/// Keys of checks with TLS.
const TRUST_KEYS: &[Key] = key_rows! {
    /// A PEM file with the trusted authorities, read when the document is applied.
    authorities: "text", Some("this host's"), "an absolute path";
    /// Verify the certificate.
    verify: "boolean", Some("true"), "true or false";
};

sections! {
    /// For all VIPs. This section, or any other key `health`, switches health checks on.
    ALL = "health" as "[health]" {
        /// The check of TCP VIPs.
        tcp_check: "check", Some("`tcp`"), "a check";
        /// The check of UDP VIPs.
        udp_check: "check", Some("`none`"), "a check";
        /// The first socket mark of probes, which use 65,536 marks from there on.
        first_mark: "number", Some("1,795,162,112 (0x6b000000)"), "1 to 4,294,901,760";
        /// The largest number of probes in flight; fixed at start.
        concurrency: "probes", Some("512"), "1 to 65,536";
        /// The number of probing threads; fixed at start.
        threads: "threads", Some("2"), "1 to 64";
        /// The number of transitions to remember for each real.
        history: "transitions", Some("16"), "0 to 1,000";
        /// The shortest time between two changes of the balancer; results in between become one
        /// change.
        pause: "seconds", Some("0.1"), "0.01 to 10";
    } with PROBE_KEYS, VIP_KEYS

    /// For one VIP: `[vip.health]` after its `[[vip]]`, or `health = { ... }` in it. Reals of a
    /// prefix VIP or of port 0 are probed only with `port` and `via = "direct"`.
    OF_VIP = "health" as "`health` of a VIP" {
        /// The check of its reals.
        check: "check", Some("`tcp_check` or `udp_check`"), "a check";
    } with PROBE_KEYS, VIP_KEYS

    /// For one real of one VIP: `{ address = "198.51.100.1", health = { port = 8080 } }`.
    OF_REAL = "health" as "`health` of a real" {
        /// Its check; with `none` the real stays in use.
        check: "check", Some("the VIP's"), "a check";
    } with PROBE_KEYS

    /// Sends an HTTP/1.1 request and checks the answer. It does not follow redirections.
    HTTP = "http" as "`kind = \"http\"`" {
        /// The word `http`.
        kind: "choice", NEEDED, "`http`";
    } with HTTP_KEYS

    /// The same as `http`, over TLS 1.2 or 1.3.
    HTTPS = "https" as "`kind = \"https\"`" {
        /// The word `https`.
        kind: "choice", NEEDED, "`https`";
        /// The name for SNI, which the certificate must match.
        server_name: "text", Some("none: no SNI, a certificate for the address"), "a DNS name or an address";
    } with HTTP_KEYS, TRUST_KEYS

    /// Sends a datagram and waits for the wanted answer, ignoring others. In payload and answers,
    /// `\xNN` is a byte in hexadecimal and `\\` a backslash; use single quotes.
    UDP = "udp" as "`kind = \"udp\"`" {
        /// The word `udp`.
        kind: "choice", NEEDED, "`udp`";
        /// The datagram.
        payload: "text", NEEDED, "0 to 1,400 bytes";
        /// The wanted answer: any datagram, or the payload itself.
        answer: "choice", Some("`any`"), "`any` or `echo`";
        /// Bytes that the answer must contain.
        answer_contains: "text", Some("none"), "bytes; not with another key of the answer";
        /// The exact answer.
        answer_exactly: "text", Some("none"), "bytes; not with another key of the answer";
    }

    /// Sends a DNS query.
    DNS = "dns" as "`kind = \"dns\"`" {
        /// The word `dns`.
        kind: "choice", NEEDED, "`dns`";
        /// The name to query.
        name: "text", NEEDED, "a DNS name in ASCII";
        /// The record type: 1 (A), 28 (AAAA), 6 (SOA), ...
        record_type: "number", Some("1"), "0 to 65,535";
        /// The transport.
        protocol: "choice", Some("`udp`"), "`tcp` or `udp`";
        /// The accepted response codes: 0 (NOERROR), 3 (NXDOMAIN), ...
        codes: "list", Some("0"), "a list of numbers, 0 to 15";
        /// An address that the answer must contain.
        address: "text", Some("none"), "an IPv4 or IPv6 address";
    }

    /// Completes a QUIC handshake.
    QUIC = "quic" as "`kind = \"quic\"`" {
        /// The word `quic`.
        kind: "choice", NEEDED, "`quic`";
        /// The offered application protocols.
        alpn: "list", Some("`h3`"), "a list of up to 64 words of 1 to 255 bytes";
        /// The name for SNI, which the certificate must match.
        server_name: "text", Some("the address"), "a DNS name or an address";
    } with TRUST_KEYS

    /// Runs a program on this host, which must exit with status 0.
    COMMAND = "command" as "`kind = \"command\"`" {
        /// The word `command`.
        kind: "choice", NEEDED, "`command`";
        /// The program.
        program: "text", NEEDED, "an absolute path";
        /// Its arguments.
        arguments: "list", Some("none"), "a list of texts";
    }

    /// Opens a TCP connection and closes it at once.
    TCP = "tcp" as "`kind = \"tcp\"`" {
        /// The word `tcp`.
        kind: "choice", NEEDED, "`tcp`";
    }

    /// Sends a SYN, waits for the SYN-ACK and answers it with a RST, so the server's program sees
    /// no connection.
    SYN = "syn" as "`kind = \"syn\"`" {
        /// The word `syn`.
        kind: "choice", NEEDED, "`syn`";
    }
}
