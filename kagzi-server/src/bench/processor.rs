//! How much processor time the parts of a bench use.

use std::time::Duration;

/// The processes to watch, under the names of their parts.
#[derive(Clone, Debug)]
pub struct Watch {
    parts: Vec<(&'static str, Vec<String>)>,
}

impl Watch {
    /// Watches this process, as `client`.
    pub fn this_process() -> Self {
        Self { parts: vec![("client", vec!["self".to_owned()])] }
    }

    /// Watches these processes, too.
    #[must_use]
    pub fn and(mut self, part: &'static str, processes: impl Iterator<Item = u32>) -> Self {
        self.parts.push((part, processes.map(|id| id.to_string()).collect()));
        self
    }

    /// What each part has used so far, where the system tells and all processes live.
    pub fn times(&self) -> Option<Vec<(&'static str, Duration)>> {
        let of_all = |processes: &[String]| -> Option<Duration> {
            processes.iter().map(|id| processor_time(id)).sum()
        };
        self.parts.iter().map(|(part, processes)| Some((*part, of_all(processes)?))).collect()
    }
}

/// User and system time, from `/proc`, which Linux has; elsewhere the figure is left out.
fn processor_time(process: &str) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold blanks; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // In the hundredths of a second that Linux shows everywhere.
    Some(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_this_process_grows_and_that_of_no_process_is_left_out() {
        let watch = Watch::this_process();
        let before = watch.times().unwrap()[0].1;
        while watch.times().unwrap()[0].1 == before {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
        assert!(watch.and("nobody", std::iter::once(u32::MAX)).times().is_none());
    }
}
