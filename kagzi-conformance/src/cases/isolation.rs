//! Isolation: no call with one namespace sees or touches another's rows.

use std::time::Duration;

use kagzi_core::{
    AttemptScope, Claim, DeleteFinished, IdempotencyKey, ListAttempts, ListRuns, PageRequest, Payload,
    RunFilter, StartRun,
};

use super::fencing::Operation;
use crate::case::{Case, cases};
use crate::scenario::{Held, LEASE, Scenario, equal, fatal, run_not_found, under};
use crate::violation::{Verdict, Violation};

cases! {
    "isolation";
    [11] get_run_does_not_find_another_namespaces_run;
    [11] list_attempts_does_not_find_another_namespaces_run;
    [11] list_runs_shows_nothing_of_another_namespace;
    [11] count_runs_counts_nothing_of_another_namespace;
    [11] queue_depths_show_nothing_of_another_namespace;
    [11] cancel_does_not_find_another_namespaces_run;
    [11] requeue_does_not_find_another_namespaces_dead_letter;
    [11] claim_takes_nothing_of_another_namespace;
    [8, 11] a_claim_sent_again_for_another_namespace_takes_nothing_of_the_first;
    [11] claim_repairs_nothing_of_another_namespace;
    [11] a_claim_that_repairs_its_own_repairs_nothing_of_another_namespace;
    [11] delete_finished_of_one_namespace_spares_the_others;
    [11] the_same_names_and_keys_live_side_by_side;
    [11] a_missing_run_and_anothers_run_get_the_same_answer;
    [11] namespaces_differ_by_case_and_by_every_byte;
}

/// Every worker operation, once with the right lease in the wrong namespace.
pub(super) fn operation_cases() -> Vec<Case> {
    Operation::ALL
        .into_iter()
        .map(|operation| {
            let name = format!("{}_does_not_find_another_namespaces_run", operation.name());
            Case::new("isolation", name, &[11], &[], move |s| Box::pin(is_not_found(s, operation)))
        })
        .collect()
}

async fn is_not_found(s: Scenario, operation: Operation) -> Verdict {
    let held = s.held().await?;
    held.begin("open").await?;
    // The other namespace holds a run of its own, under the same worker and token.
    let other = s.in_namespace("globex")?;
    let neighbour = other.held().await?;
    neighbour.begin("open").await?;
    let before = (held.snapshot().await?, neighbour.snapshot().await?);
    let mut stray = held.clone();
    stray.lease.namespace = other.namespace().clone();
    s.turn(Duration::from_micros(1));
    let answer = operation.send(&stray).await?;
    let rule = format!("{} under a lease of another namespace names no run here [11]", operation.name());
    run_not_found(&answer, &rule)?;
    s.unchanged(&before.0, "and nothing changed there [11]").await?;
    other.unchanged(&before.1, "nor here [11]").await
}

/// A run of `acme` in the middle of its work, and the eyes of `globex`.
async fn two_tenants(s: &Scenario) -> Result<(Held, Scenario), Violation> {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("open").await?;
    s.turn(Duration::from_micros(1));
    Ok((held, s.in_namespace("globex")?))
}

async fn get_run_does_not_find_another_namespaces_run(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    let answer = s.store().get_run(other.namespace(), held.run_id()).await;
    under(
        "reading finds no run of another namespace [11]",
        run_not_found(&answer, "another namespace's run is not found [11]"),
    )
}

async fn list_attempts_does_not_find_another_namespaces_run(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    for scope in [AttemptScope::All, AttemptScope::Latest] {
        let request = ListAttempts {
            namespace: other.namespace().clone(),
            run_id: held.run_id(),
            scope,
            page: PageRequest::first(10),
        };
        let answer = s.store().list_attempts(&request).await;
        run_not_found(&answer, "another namespace's history is not found [11]")?;
    }
    Ok(())
}

async fn list_runs_shows_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let (_, other) = two_tenants(&s).await?;
    let request = ListRuns {
        namespace: other.namespace().clone(),
        filter: RunFilter::default(),
        page: PageRequest::first(10),
    };
    let page = s.store().list_runs(&request).await.map_err(|e| Violation::refused("a listing", &e))?;
    equal("another namespace's runs are not listed [11]", &0, &page.items.len())
}

async fn count_runs_counts_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let (_, other) = two_tenants(&s).await?;
    let count = s.store().count_runs(other.namespace(), &RunFilter::default()).await;
    equal(
        "another namespace's runs are not counted [11]",
        &0,
        &count.map_err(|e| Violation::refused("a count", &e))?,
    )
}

async fn queue_depths_show_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let (_, other) = two_tenants(&s).await?;
    let depths = s.store().queue_depths(other.namespace()).await;
    equal(
        "another namespace's queues are not shown [11]",
        &Vec::new(),
        &depths.map_err(|e| Violation::refused("depths", &e))?,
    )
}

async fn cancel_does_not_find_another_namespaces_run(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    let before = held.snapshot().await?;
    let answer = s.store().cancel(other.cancel_request(held.run_id())).await;
    run_not_found(&answer, "another namespace's run is not found [11]")?;
    s.unchanged(&before, "and not cancelled [11]").await?;
    held.complete("open", 1, "1").await
}

async fn requeue_does_not_find_another_namespaces_dead_letter(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    held.fail_run(fatal()).await?;
    let before = held.snapshot().await?;
    let answer = s.store().requeue(other.requeue_request(held.run_id())).await;
    run_not_found(&answer, "another namespace's dead letter is not found [11]")?;
    s.unchanged(&before, "and not put back to work [11]").await
}

async fn claim_takes_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    other.nothing_claimable("a claim takes nothing of another namespace [11]").await?;
    s.unchanged(&before, "and changes nothing there [11]").await
}

async fn a_claim_sent_again_for_another_namespace_takes_nothing_of_the_first(s: Scenario) -> Verdict {
    let (ours, theirs) = (s.in_namespace("ours")?, s.in_namespace("theirs")?);
    ours.start_one().await?;
    let claim = ours.claim_request("w1", 1)?;
    ours.claim_as(claim.clone()).await?;
    let again = Claim { namespace: theirs.namespace().clone(), ..claim };
    let taken = theirs.claim_as(again).await?;
    let rule = "a repeat of a claim hands over nothing of another namespace [11]";
    equal(rule, &0, &taken.len())
}

async fn claim_repairs_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    s.turn(LEASE);
    let before = held.snapshot().await?;
    other.nothing_claimable("an expired lease of another namespace is not taken [11]").await?;
    s.unchanged(&before, "nor repaired [11]").await
}

async fn a_claim_that_repairs_its_own_repairs_nothing_of_another_namespace(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    let own = other.held().await?;
    let sleeper = s.held().await?;
    sleeper.sleep("nap", Duration::from_secs(1)).await?;
    s.turn(LEASE);
    let before = [held.snapshot().await?, sleeper.snapshot().await?];
    equal("a claim repairs its own queue [10]", &own.run_id(), &other.claim_one("w2").await?.run_id())?;
    for before in &before {
        s.unchanged(before, "and nobody else's of the same name [11]").await?;
    }
    Ok(())
}

async fn delete_finished_of_one_namespace_spares_the_others(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    held.complete_run("1").await?;
    let theirs = other.held().await?;
    theirs.complete_run("2").await?;
    s.turn(Duration::from_secs(1));
    let before = held.snapshot().await?;
    let request = DeleteFinished {
        namespace: Some(other.namespace().clone()),
        states: Vec::new(),
        before: s.now(),
        limit: 10,
    };
    let deleted = s.store().delete_finished(&request).await;
    equal(
        "only its own run is removed [11]",
        &1,
        &deleted.map_err(|e| Violation::refused("a removal", &e))?,
    )?;
    s.unchanged(&before, "another namespace's run stays, with its history [11]").await
}

async fn the_same_names_and_keys_live_side_by_side(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    let key = IdempotencyKey::new("one key").map_err(|e| Violation::refused("a key", &e))?;
    let mut held = Vec::new();
    for (tenant, input) in [(&s, "1"), (&other, "2")] {
        let start = StartRun {
            idempotency_key: Some(key.clone()),
            input: Payload::json(input),
            ..tenant.start_request()
        };
        tenant.start(start).await?;
        held.push(tenant.claim_one("w1").await?);
    }
    for (run, output) in held.iter().zip(["\"first\"", "\"second\""]) {
        equal("the same step is begun in both [11]", &1, &run.begin("a").await?)?;
        run.complete("a", 1, output).await?;
    }
    held[0].complete_run("\"first\"").await?;
    let theirs = other.snapshot(held[1].run_id()).await?;
    equal("each has its input [11]", &Payload::json("2"), &theirs.record.input)?;
    equal("and its outputs [11]", &Some(Payload::json("\"second\"")), &theirs.attempts[0].output)?;
    held[1].step("b", "1").await
}

async fn a_missing_run_and_anothers_run_get_the_same_answer(s: Scenario) -> Verdict {
    let (held, other) = two_tenants(&s).await?;
    let missing = other.start_request().run_id();
    let mut told = Vec::new();
    for run_id in [held.run_id(), missing] {
        let answer = s.store().get_run(other.namespace(), run_id).await;
        run_not_found(&answer, "neither is found [11]")?;
        told.extend(answer.err().map(|error| error.to_string().replace(&run_id.to_string(), "")));
    }
    equal("nothing hints that one of them exists [11]", &told[0], &told[1])
}

async fn namespaces_differ_by_case_and_by_every_byte(s: Scenario) -> Verdict {
    let names =
        ["acme", "Acme", "ACME", "acmé", "acme\u{301}", "acme'", "acme%", "acm_", "a", "acme\u{200b}"];
    for name in names {
        s.in_namespace(name)?.start_one().await?;
    }
    for name in names {
        equal(
            "each namespace has its own run [11]",
            &1,
            &s.in_namespace(name)?.claim("w1", 10).await?.len(),
        )?;
    }
    Ok(())
}
