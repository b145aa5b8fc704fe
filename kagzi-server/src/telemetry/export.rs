//! The export of spans, by OTLP over gRPC, in batches, on a thread of their own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;
use crate::config::ConfigError;

/// How long the end of a process waits for its last spans to be taken.
pub const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// The name of the service unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says another.
const SERVICE: &str = "kagzi";

/// Where spans are exported to. How (headers, timeouts, sampling, batches, resource attributes) is said by the
/// standard `OTEL_*` variables, which the exporter reads itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// A collector; nothing: the one that the standard variables name.
    endpoint: Option<String>,
}

impl Export {
    /// What `otlp_endpoint` of the configuration and the standard variables say; nothing if neither names a
    /// collector, or the variables say that there shall be no export.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] if a variable asks for another exporter or another protocol than there is.
    pub fn wanted(endpoint: Option<&str>) -> Result<Option<Self>, ConfigError> {
        Self::of(endpoint, |name| std::env::var(name).ok())
    }

    fn of(
        endpoint: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        // A variable that is empty counts as not set.
        let said = |name: &'static str| {
            let value = variable(name).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty()).map(|value| (name, value))
        };
        let either = |one, other| said(one).or_else(|| said(other));
        let exporter = said("OTEL_TRACES_EXPORTER");
        let off = said("OTEL_SDK_DISABLED").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"))
            || exporter.as_ref().is_some_and(|(_, value)| value == "none");
        let collector = either("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        if off || (endpoint.is_none() && exporter.is_none() && collector.is_none()) {
            return Ok(None);
        }
        only(exporter, "otlp", "otlp or none")?;
        only(
            either("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
            "grpc",
            "grpc, for which collectors listen on port 4317",
        )?;
        if let (None, Some((name, value))) = (endpoint, &collector) {
            check_endpoint(name, value)?;
        }
        Ok(Some(Self { endpoint: endpoint.map(str::to_owned) }))
    }
}

/// Refuses a variable that says something else.
fn only(said: Option<(&'static str, String)>, known: &str, expected: &str) -> Result<(), ConfigError> {
    match said {
        Some((key, got)) if got != known => {
            Err(ConfigError::Invalid { key: key.to_owned(), expected: expected.to_owned(), got })
        }
        _ => Ok(()),
    }
}

/// Refuses what is no URL of a collector. It is not repeated, since it may hold a password.
pub(crate) fn check_endpoint(key: &str, url: &str) -> Result<(), ConfigError> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let got = match rest {
        Some(rest) if rest.contains('@') => "one with a user or a password in it".to_owned(),
        Some(rest) if !rest.is_empty() && !rest.starts_with(['/', ':']) => return Ok(()),
        _ => format!("{} bytes that do not begin so", url.len()),
    };
    let expected = "a URL such as http://127.0.0.1:4317 or https://collector:4317 \
                    (credentials go into OTEL_EXPORTER_OTLP_HEADERS)";
    Err(ConfigError::Invalid { key: key.to_owned(), expected: expected.to_owned(), got })
}

/// The export of spans of this process, or that there is none. Dropping it leaves the last spans, of the few
/// seconds that a batch gathers for, to luck.
#[must_use]
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    pub(super) fn begin(export: &Export) -> Result<Self, TelemetryError> {
        let mut exporter = OtlpExporter::builder().with_tonic();
        if let Some(endpoint) = &export.endpoint {
            exporter = exporter.with_endpoint(endpoint.clone());
        }
        let exporter = exporter.build().map_err(|error| ConfigError::Invalid {
            key: "otlp_endpoint".to_owned(),
            expected: "settings of OpenTelemetry's exporter, its variables included, that fit together"
                .to_owned(),
            got: error.to_string(),
        })?;
        let resource = Resource::builder().with_service_name(service_name());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.with_attribute(version).build())
            .with_batch_exporter(Reporting { exporter, failing: AtomicBool::new(false) })
            .build();
        Ok(Self(Some(provider)))
    }

    /// What makes OpenTelemetry's spans of those of this process.
    pub(super) fn layer<S>(&self) -> Option<OpenTelemetryLayer<S, SdkTracer>>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracer = self.0.as_ref()?.tracer("kagzi");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        Some(layer.with_location(false).with_threads(false).with_tracked_inactivity(false))
    }

    /// Exports what is left, within [`FLUSH_WITHIN`].
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_WITHIN));
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(error) => tracing::error!(%error, "the export of spans ended badly"),
        }
    }
}

/// The service's name: the variable for it first, as the standard has it.
fn service_name() -> Value {
    let named = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let attribute = || {
        let attributes = std::env::var("OTEL_RESOURCE_ATTRIBUTES").ok()?;
        let mut pairs = attributes.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| key.trim() == "service.name").map(|(_, name)| name.trim().to_owned())
    };
    named.or_else(attribute).unwrap_or_else(|| SERVICE.to_owned()).into()
}

/// An exporter that says once that it cannot export, and once that it can again.
#[derive(Debug)]
struct Reporting {
    exporter: OtlpExporter,
    failing: AtomicBool,
}

impl SpanExporter for Reporting {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.retain(|span| !found_nothing(span));
        if batch.is_empty() {
            return Ok(());
        }
        let exported = self.exporter.export(batch).await;
        let failed = exported.is_err();
        if failed != self.failing.swap(failed, Ordering::Relaxed) {
            match &exported {
                Ok(()) => tracing::info!("spans are exported again"),
                Err(error) => tracing::warn!(
                    %error,
                    "spans cannot be exported and are dropped, all else goes on; \
                     see that a collector takes OTLP over gRPC at otlp_endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
                ),
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Whoever waits for work looks for it again and again: looks that found none are not worth their export.
fn found_nothing(span: &SpanData) -> bool {
    span.attributes
        .iter()
        .any(|attribute| attribute.key.as_str() == "kagzi.runs" && attribute.value == Value::I64(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Export>, ConfigError> {
        Export::of(endpoint, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn spans_are_exported_if_a_collector_is_named_and_nothing_forbids_it() {
        let by_variables = Some(Export { endpoint: None });
        let url = "http://127.0.0.1:4317";
        assert_eq!(of(None, &[]).unwrap(), None);
        assert_eq!(
            of(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_SERVICE_NAME", "x")]).unwrap(),
            None
        );
        assert_eq!(of(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap(), by_variables);
        assert_eq!(of(None, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)]).unwrap(), by_variables);
        assert_eq!(of(None, &[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap(), by_variables);
        assert_eq!(of(Some(url), &[]).unwrap(), Some(Export { endpoint: Some(url.to_owned()) }));
        for off in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(of(Some(url), &[off, ("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap(), None);
        }
    }

    #[test]
    fn what_there_is_no_exporter_for_is_refused_by_the_name_of_the_variable() {
        let url = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "127.0.0.1:4317"),
        ] {
            let error = of(None, &[url, (name, value)]).unwrap_err();
            assert!(matches!(&error, ConfigError::Invalid { key, .. } if key == name), "{error}");
        }
        // Of no matter where nothing is exported.
        assert_eq!(of(None, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).unwrap(), None);
    }

    #[test]
    fn an_endpoint_is_a_url_without_a_password_and_a_refusal_does_not_repeat_it() {
        for well in ["http://127.0.0.1:4317", "https://collector", "http://[::1]:4317/"] {
            check_endpoint("otlp_endpoint", well).unwrap();
        }
        for wrong in
            ["", "collector:4317", "grpc://c:4317", "http://", "http://:4317", "http://u:hidden@c:4317"]
        {
            let error = check_endpoint("otlp_endpoint", wrong).unwrap_err().to_string();
            assert!(error.contains("otlp_endpoint") && !error.contains("hidden"), "{error}");
        }
    }
}
