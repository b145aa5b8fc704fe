//! A collector of spans: what OpenTelemetry exports to, as far as the cases need it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::world::Failed;

/// So long a case waits for spans before it has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The service that exported it.
    pub service: String,
    pub trace_id: String,
    pub span_id: String,
    /// Empty for the first of a trace.
    pub parent_id: String,
    pub name: String,
    pub attributes: HashMap<String, String>,
    /// The ids of the traces that it is linked to.
    pub links: Vec<String>,
    /// All of it as text, to look for what must not be there.
    pub text: String,
}

impl Collected {
    /// An attribute, or nothing.
    pub fn get(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

/// A running collector. Dropping it ends it.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<Collected>>,
    _serving: AbortOnDropHandle<()>,
}

struct Receiver(watch::Sender<Vec<Collected>>);

impl Collector {
    pub async fn start() -> Result<Self, Failed> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, spans) = watch::channel(Vec::new());
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move {
            // A case that misses spans says so.
            serving.await.ok();
        });
        Ok(Self { address, spans, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Where spans are to be exported to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has arrived.
    pub fn spans(&self) -> Vec<Collected> {
        self.spans.borrow().clone()
    }

    /// Waits until such a span has arrived.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&Collected) -> bool) -> Result<(), Failed> {
        let mut spans = self.spans.clone();
        let arrived = spans.wait_for(|spans| spans.iter().any(&wanted));
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(arrived) => Ok(arrived.map(drop)?),
            Err(_) => Err(format!("no span of {what} among {:#?}", self.spans()).into()),
        }
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let service = attributes(&resource.attributes).remove("service.name").unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let spans: Vec<_> = spans.map(|span| collected(&service, &span)).collect();
            self.0.send_modify(|all| all.extend(spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn collected(service: &str, span: &Span) -> Collected {
    Collected {
        service: service.to_owned(),
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: hex(&span.parent_span_id),
        name: span.name.clone(),
        attributes: attributes(&span.attributes),
        links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
        text: format!("{span:?}"),
    }
}

fn attributes(list: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
