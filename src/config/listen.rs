//! Where a process listens.

use std::net::{IpAddr, SocketAddr};

use super::variables::Reader;
use super::{ApiConfig, Problem};

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// `LISTEN_ADDRESS`, for all ports of the process.
    pub(super) fn listen_address(&mut self) -> IpAddr {
        let address = self.optional("LISTEN_ADDRESS").unwrap_or_else(|| "0.0.0.0".to_owned());
        address.parse().unwrap_or_else(|_| {
            let complaint = "must be an IP address such as 0.0.0.0 or ::";
            self.problems.push(Problem::new("LISTEN_ADDRESS", complaint));
            IpAddr::from([127, 0, 0, 1])
        })
    }

    /// `METRICS_PORT`: a port for metrics alone, if it is set. `api` is what an api of this process would have.
    pub(super) fn metrics_address(&mut self, api: &ApiConfig, runs_api: bool) -> Option<SocketAddr> {
        self.optional("METRICS_PORT")?;
        let port = self.number("METRICS_PORT", 0, 0, u16::MAX);
        if runs_api && port != 0 && port == api.port {
            self.problems.push(Problem::new("METRICS_PORT", "must be another port than PORT"));
        }
        Some(SocketAddr::from((api.listen_address, port)))
    }
}
