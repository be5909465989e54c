//! The keys of health checks in a document: what the reader knows, and what `docs/health.md` says.

use crate::document::Key;
#[cfg(test)]
use crate::document::NEEDED;
use crate::document::Section;
use crate::document::key_rows;
use crate::document::sections;

/// Of a request by HTTP, with TLS or without.
const HTTP_KEYS: &[Key] = key_rows! {
    /// The path, and the query if there is one.
    path: "text", Some("`/`"), "begins with `/`, up to 65,534 bytes, without spaces, `#`, `<` and `>`";
    /// How it is asked for.
    method: "choice", Some("`get`"), "`get` or `head`";
    /// The header `Host`.
    host: "text", Some("`server_name` if there is one, else the address and port that are probed"), "a name or address, and a port if need be";
    /// More headers of the request.
    headers: "list", Some("none"), "a list of lines such as `Accept: text/plain`";
    /// The statuses that are an answer.
    statuses: "list", Some("200 to 299"), "a list of numbers (`204`) and ranges (`\"200-299\"`), 100 to 999";
    /// A header that the answer must have, and text that must be in its value.
    answer_header: "text", Some("none"), "a line such as `X-State: ready`";
    /// Text that must be in the body.
    answer_body: "text", Some("none"), "any";
    /// How much of the body is read.
    max_body: "bytes", Some("65,536"), "0 to 1,048,576";
};

/// Of what is asked by TLS.
const TRUST_KEYS: &[Key] = key_rows! {
    /// Whose certificates are good: a file with certificates in PEM, which is read when the document is applied.
    authorities: "text", Some("whom this host trusts"), "a path from the root";
    /// Whether the certificate is looked at.
    verify: "true or false", Some("true"), "any";
};

sections! {
    /// How the reals of all VIPs are probed, but for what a VIP or a real says itself. Where this section or any other key `health` stands, reals
    /// are probed.
    ALL = "health" as "[health]" {
        /// What reals of VIPs of TCP are asked.
        tcp_check: "check", Some("`tcp`"), "a check";
        /// What reals of VIPs of UDP are asked. No datagram is answered by every service.
        udp_check: "check", Some("`none`"), "a check";
        /// The port that is probed.
        port: "TCP or UDP port", Some("the VIP's"), "1 to 65,535";
        /// Which way probes go: to the VIP, through the tunnel to the real, as clients' packets go; or to the real's own address.
        via: "choice", Some("`tunnel`"), "`tunnel` or `direct`";
        /// From the end of a probe to the next one of that real.
        interval: "seconds", Some("2"), "0.01 to 3,600";
        /// For how long a whole answer may take.
        timeout: "seconds", Some("1"), "0.001 to 600";
        /// Answers in a row that bring a real back.
        rise: "answers", Some("2"), "1 to 100";
        /// Failures in a row that take one out; of a real of which nothing is known yet the first one does.
        fall: "failures", Some("3"), "1 to 100";
        /// How much longer or shorter an interval is, by chance.
        jitter: "percent", Some("10"), "0 to 50";
        /// Where less than this share of a VIP's weight works, no more reals are taken out.
        panic_threshold: "percent", Some("0, only if none works"), "0 to 100";
        /// Whether drained reals that work serve while all others are down.
        drained_fallback: "true or false", Some("true"), "any";
        /// For how long the weight of a real climbs that has come back, or joins others. Needs the hash function `maglev-v2`.
        slow_start: "seconds", Some("0, at once"), "0 to 3,600";
        /// In how many steps.
        slow_start_steps: "steps", Some("8"), "4 to 8";
        /// The first of the socket marks that probes have; 65,536 from here on are theirs.
        first_mark: "number", Some("1,795,162,112 (0x6b000000)"), "1 to 4,294,901,760";
        /// How many probes are on their way at once. It counts when the checks start.
        concurrency: "probes", Some("512"), "1 to 65,536";
        /// Threads that probe. It counts when the checks start.
        threads: "threads", Some("2"), "1 to 64";
        /// How many transitions of each real are remembered.
        history: "transitions", Some("16"), "0 to 1,000";
        /// Between two changes of the balancer: what is found meanwhile is one change.
        pause: "seconds", Some("0.1"), "0.01 to 10";
    }

    /// How the reals of this VIP are probed: `[vip.health]` behind its `[[vip]]`, or `health = { ... }` in it. What is not said is as in `[health]`.
    OF_VIP = "health" as "`health` of a VIP" {
        /// What its reals are asked.
        check: "check", Some("as in `[health]`"), "a check";
        /// See `[health]`, as for all that follow.
        port: "TCP or UDP port", Some("as in `[health]`"), "1 to 65,535";
        /// Which way probes go. Reals of a prefix or of port 0 have no address and port to be probed at; `direct` and `port` give them one.
        via: "choice", Some("as in `[health]`"), "`tunnel` or `direct`";
        /// From probe to probe.
        interval: "seconds", Some("as in `[health]`"), "0.01 to 3,600";
        /// For a whole answer.
        timeout: "seconds", Some("as in `[health]`"), "0.001 to 600";
        /// Answers in a row.
        rise: "answers", Some("as in `[health]`"), "1 to 100";
        /// Failures in a row.
        fall: "failures", Some("as in `[health]`"), "1 to 100";
        /// Of an interval.
        jitter: "percent", Some("as in `[health]`"), "0 to 50";
        /// The share of weight.
        panic_threshold: "percent", Some("as in `[health]`"), "0 to 100";
        /// Whether drained reals help.
        drained_fallback: "true or false", Some("as in `[health]`"), "any";
        /// For how long a weight climbs.
        slow_start: "seconds", Some("as in `[health]`"), "0 to 3,600";
        /// In how many steps.
        slow_start_steps: "steps", Some("as in `[health]`"), "4 to 8";
    }

    /// How this real of this VIP is probed: `{ address = "198.51.100.1", health = { port = 8080 } }`. What is not said is as for its VIP.
    OF_REAL = "health" as "`health` of a real" {
        /// What it is asked; one that is asked nothing (`none`) stays in use.
        check: "check", Some("as its VIP"), "a check";
        /// The port that is probed.
        port: "TCP or UDP port", Some("as its VIP"), "1 to 65,535";
        /// From probe to probe.
        interval: "seconds", Some("as its VIP"), "0.01 to 3,600";
        /// For a whole answer.
        timeout: "seconds", Some("as its VIP"), "0.001 to 600";
        /// Answers in a row.
        rise: "answers", Some("as its VIP"), "1 to 100";
        /// Failures in a row.
        fall: "failures", Some("as its VIP"), "1 to 100";
    }

    /// An HTTP/1.1 request is answered as is wanted. Redirections are not followed.
    HTTP = "http" as "`kind = \"http\"`" {
        /// The word `http`.
        kind: "choice", NEEDED, "`http`";
    } with HTTP_KEYS

    /// The same with TLS 1.2 or 1.3.
    HTTPS = "https" as "`kind = \"https\"`" {
        /// The word `https`.
        kind: "choice", NEEDED, "`https`";
        /// The server's name: it is asked for (SNI), and the certificate must be for it.
        server_name: "text", Some("none is asked for, and the certificate must be for the address"), "a DNS name or an address";
    } with HTTP_KEYS, TRUST_KEYS

    /// A datagram is answered. Others than the answer that is wanted are passed over. Bytes are written as text, in which `\xNN` is a byte in
    /// hexadecimal digits and `\\` a backslash: in single quotes.
    UDP = "udp" as "`kind = \"udp\"`" {
        /// The word `udp`.
        kind: "choice", NEEDED, "`udp`";
        /// What is sent.
        payload: "text", NEEDED, "0 to 1,400 bytes";
        /// What comes back.
        answer: "choice", Some("`any`"), "`any` or `echo`";
        /// What must be in the answer.
        answer_contains: "text", Some("none"), "bytes; not with another key of the answer";
        /// What the answer must be.
        answer_exactly: "text", Some("none"), "bytes; not with another key of the answer";
    }

    /// A DNS query is answered.
    DNS = "dns" as "`kind = \"dns\"`" {
        /// The word `dns`.
        kind: "choice", NEEDED, "`dns`";
        /// The name that is asked for.
        name: "text", NEEDED, "a DNS name in ASCII";
        /// Of which type: 1 (A), 28 (AAAA), 6 (SOA), ...
        record_type: "number", Some("1"), "0 to 65,535";
        /// By what it is asked.
        protocol: "choice", Some("`udp`"), "`tcp` or `udp`";
        /// The response codes that are an answer: 0 (NOERROR), 3 (NXDOMAIN), ...
        codes: "list", Some("0"), "a list of numbers, 0 to 15";
        /// An address that must be among the answers.
        address: "text", Some("none"), "an IPv4 or IPv6 address";
    }

    /// A QUIC handshake is completed.
    QUIC = "quic" as "`kind = \"quic\"`" {
        /// The word `quic`.
        kind: "choice", NEEDED, "`quic`";
        /// The protocols above it that are offered.
        alpn: "list", Some("`h3`"), "a list of up to 64 words of 1 to 255 bytes";
        /// The server's name: it is asked for (SNI), and the certificate must be for it.
        server_name: "text", Some("the address"), "a DNS name or an address";
    } with TRUST_KEYS

    /// A program of this host ends with status 0.
    COMMAND = "command" as "`kind = \"command\"`" {
        /// The word `command`.
        kind: "choice", NEEDED, "`command`";
        /// Its path.
        program: "text", NEEDED, "a path from the root";
        /// Its arguments.
        arguments: "list", Some("none"), "a list of texts";
    }

    /// A TCP connection is accepted. It is closed at once.
    TCP = "tcp" as "`kind = \"tcp\"`" {
        /// The word `tcp`.
        kind: "choice", NEEDED, "`tcp`";
    }

    /// A SYN is answered by a SYN-ACK. A RST follows, so the server's program sees no connection.
    SYN = "syn" as "`kind = \"syn\"`" {
        /// The word `syn`.
        kind: "choice", NEEDED, "`syn`";
    }
}
