//! What goes on record while the record cannot be written.

use serde_json::Value;

use super::*;
use crate::auth::{Audit, held::held};

fn cancel(run_id: &str) -> Request<v1::CancelWorkflowRequest> {
    Request::new(v1::CancelWorkflowRequest {
        namespace: "default".to_owned(),
        run_id: run_id.to_owned(),
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_record_that_hangs_holds_up_for_a_while_what_goes_on_it_and_nothing_else() {
    let (sink, holder) = held();
    let config = ServerConfig::default();
    let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::default()), config.rules.clone()));
    let services = services_for(&config, store, Auth::open_on_record(Audit::kept_by(sink)));
    let start = v1::StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "q".to_owned(),
        workflow_type: "t".to_owned(),
        ..Default::default()
    };
    let started = services.start_workflow(Request::new(start.clone())).await.unwrap();
    let run_id = started.into_inner().run_id;
    let get = || v1::GetWorkflowRequest {
        namespace: "default".to_owned(),
        run_id: run_id.clone(),
        ..Default::default()
    };
    let state = async || {
        let record = services.get_workflow(Request::new(get())).await.unwrap().into_inner().record;
        record.unwrap().run.unwrap().state()
    };
    let began = Instant::now();
    let one = {
        let services = services.clone();
        let cancel = cancel(&run_id);
        tokio::spawn(async move { services.cancel_workflow(cancel).await })
    };
    tokio::task::yield_now().await;
    holder.begun.recv_timeout(Duration::from_mins(1)).unwrap();
    // While it waits, all others go on.
    services.start_workflow(Request::new(start)).await.unwrap();
    assert_eq!(state().await, v1::RunState::Pending);
    assert!(began.elapsed() < Duration::from_millis(1) && !one.is_finished());
    for refused in [one.await.unwrap(), services.cancel_workflow(cancel(&run_id)).await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("audit log"), "{refused:?}");
        assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    }
    assert_eq!(state().await, v1::RunState::Pending, "what is not on record is not done");
    assert!(services.metrics().text().unwrap().contains("kagzi_file_unusable{file=\"audit_log\"} 1\n"));

    drop(holder.go);
    // From here on a thread answers, and the runtime's time may not run ahead of it.
    tokio::time::resume();
    services.cancel_workflow(cancel(&run_id)).await.unwrap();
    assert_eq!(state().await, v1::RunState::Cancelled);
    assert!(services.metrics().text().unwrap().contains("kagzi_file_unusable{file=\"audit_log\"} 0\n"));
    let lines: Vec<Value> =
        holder.lines.lock().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcomes: Vec<&str> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    // The second was given up before anybody could have begun to write that it begins.
    assert_eq!(outcomes, ["BEGINS", "UNAVAILABLE", "UNAVAILABLE", "BEGINS", "OK"], "{lines:?}");
}
