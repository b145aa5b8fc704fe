//! What was measured: samples under names such as `sqlite.grpc.workflows_per_second`.

use std::collections::BTreeMap;

use kagzi_benches::backends::Backend;

/// Samples by name, in the order of the rounds.
#[derive(Debug, Default)]
pub struct Metrics {
    samples: BTreeMap<String, Vec<f64>>,
}

impl Metrics {
    /// Adds a sample of a backend.
    pub fn add(&mut self, backend: Backend, name: &str, sample: f64) {
        self.samples.entry(format!("{}.{name}", backend.name())).or_default().push(sample);
    }

    /// Every name with its samples.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.samples.iter().map(|(name, samples)| (name.as_str(), samples.as_slice()))
    }

    /// The samples of a name, if it was measured.
    pub fn samples(&self, name: &str) -> Option<&[f64]> {
        self.samples.get(name).map(Vec::as_slice)
    }

    /// The ratio of two names in each round, if both were measured.
    pub fn ratios(&self, name: &str, to: &str) -> Option<Vec<f64>> {
        let (samples, to) = (self.samples(name)?, self.samples(to)?);
        Some(samples.iter().zip(to).map(|(sample, to)| sample / to).collect())
    }
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// In the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some samples, unless there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: *sorted.get(sorted.len() / 2)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_their_round() {
        let mut metrics = Metrics::default();
        for (ours, theirs) in [(10.0, 5.0), (40.0, 10.0)] {
            metrics.add(Backend::Sqlite, "ours", ours);
            metrics.add(Backend::Sqlite, "theirs", theirs);
        }
        assert_eq!(metrics.ratios("sqlite.ours", "sqlite.theirs"), Some(vec![2.0, 4.0]));
        assert_eq!(metrics.ratios("sqlite.ours", "sqlite.missing"), None);
    }
}
