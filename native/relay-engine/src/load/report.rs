//! The result of a run, as JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Failure;
use super::drive::Outcome;
use super::plan::{Mode, Plan};

/// Longest time a histogram tells apart: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// An empty histogram of nanoseconds, good to three digits.
pub(super) fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1_000, LONGEST, 3)?)
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Gathers the fields of a result. CPU times are in seconds, memory in bytes.
pub(super) struct Report {
    fields: Map<String, Value>,
    relay: Option<f64>,
    client: f64,
}

impl Report {
    pub(super) fn new<T>(plan: &Plan, outcome: &Outcome<T>) -> Self {
        let (start, from, to) = (&outcome.start, &outcome.prepared, &outcome.end);
        let mut report = Self {
            fields: Map::new(),
            relay: to
                .relay
                .zip(from.relay)
                .map(|(to, from)| (to - from).as_secs_f64()),
            client: (to.client - from.client).as_secs_f64(),
        };
        report.put("kind", plan.work.name());
        report.put("mode", plan.route.mode);
        report.put(
            "http",
            plan.route.http.filter(|_| plan.route.mode != Mode::Direct),
        );
        report.put("connections", plan.connections);
        report.put("streams", plan.streams);
        report.put("threads", plan.threads.min(plan.connections));
        report.put("open_seconds", (outcome.connected - start.at).as_secs_f64());
        report.put("seconds", outcome.seconds());
        report.put("client_cpu_s", report.client);
        report.put("relay_cpu_s", report.relay);
        report.put("relay_rss_start", start.resident.map(|(now, _)| now));
        report.put("relay_rss_end", to.resident.map(|(now, _)| now));
        report.put("relay_rss_peak", to.resident.map(|(_, most)| most));
        report
    }

    pub(super) fn put(&mut self, name: &str, value: impl Serialize) {
        // Numbers, names and nothing: all of them have a form in JSON.
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.fields.insert(name.to_owned(), value);
    }

    /// CPU time by `amount` of something: seconds for a gigabyte, microseconds for anything smaller.
    pub(super) fn cost_per(&mut self, what: &str, amount: f64) {
        let (unit, factor) = if what == "gb" {
            ("s", 1.0)
        } else {
            ("us", 1e6)
        };
        let cost = |cpu: f64| (amount > 0.0).then(|| cpu * factor / amount);
        let (relay, client) = (self.relay.and_then(cost), cost(self.client));
        self.put(&format!("relay_{unit}_per_{what}"), relay);
        self.put(&format!("client_{unit}_per_{what}"), client);
    }

    /// A distribution in microseconds.
    pub(super) fn distribution(&mut self, name: &str, times: &Histogram<u64>) {
        let mut fields = Map::new();
        let mut put = |name: &str, nanoseconds: f64| {
            fields.insert(name.to_owned(), (nanoseconds / 1e3).into());
        };
        put("mean", times.mean());
        for (name, percentile) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9)] {
            put(name, times.value_at_percentile(percentile) as f64);
        }
        put("max", times.max() as f64);
        self.put(name, fields);
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        self.fields
    }
}
