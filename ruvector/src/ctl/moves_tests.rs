use super::super::testing::{observed, quarter, running};
use super::*;
use cluster_core::map::ReplicaState::{Learner, Releasing, Serving};

/// Partition 1 goes from node 1 to node 2.
fn moving(from: ReplicaState, to: ReplicaState, learner: Option<LearnerProgress>) -> RunningMove {
    let mut seen = observed(2, &[&[(1, 3, from), (2, 9, to)]]);
    seen.status.moves = vec![running(1, Some(1), 2, learner)];
    let [line] = &seen.running_moves()[..] else {
        panic!("one move");
    };
    line.clone()
}

#[test]
fn a_move_says_how_far_it_is_and_how_long_it_takes() {
    let line = moving(Serving, Learner, Some(quarter()));
    assert_eq!(
        line.sentence(),
        "1 to node 2 (copying, 25 %, 12 MB/s, 12 s left)"
    );
    let text = running_table(&[line]);
    let row = text.lines().nth(1).expect("a row");
    let cells: Vec<_> = row.split("  ").map(str::trim).collect();
    let cells: Vec<_> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells,
        [
            "1", "-", "1 → 2", "drain", "copying", "25 %", "50 MB", "12 MB/s", "12 s"
        ]
    );
}

#[test]
fn the_phases_follow_the_learner_and_then_the_map() {
    let phase = |from, to, learner| moving(from, to, learner).phase;
    let mut copied = quarter();
    copied.is_copied = true;
    assert_eq!(phase(Serving, Learner, None), Phase::Starting);
    assert_eq!(phase(Serving, Learner, Some(quarter())), Phase::Copying);
    assert_eq!(phase(Serving, Learner, Some(copied)), Phase::CatchingUp);
    // The map is ahead of the node's last report.
    assert_eq!(phase(Releasing, Serving, Some(copied)), Phase::Releasing);

    let text = running_table(&[moving(Serving, Learner, Some(copied))]);
    assert!(
        text.contains("catching up  100 %") && text.contains("1.2 kB of log"),
        "{text}"
    );
}

#[test]
fn nothing_that_runs_and_nothing_planned_is_said() {
    assert_eq!(running_table(&[]), "no move is running\n");
    assert_eq!(planned_table(&[], "none is planned"), "none is planned\n");
}

#[test]
fn a_plan_comes_back_from_its_json_as_it_was() {
    let line = MoveLine {
        partition: 4,
        index: "items_embedding_idx".to_owned(),
        from: None,
        to: 3,
        reason: MoveReason::Repair,
    };
    let json = serde_json::to_string(&line).expect("encodes");
    assert!(json.contains("\"repair\""), "{json}");
    let read: MoveLine = serde_json::from_str(&json).expect("decodes");
    assert_eq!(read.planned(), line.planned());
    let text = planned_table(&[line], "");
    assert!(text.contains("new → 3"), "{text}");
}

#[test]
fn an_unknown_reason_in_a_plan_is_an_error_and_not_a_guess() {
    let seen = observed(1, &[]);
    let wire = proto::v1::PlannedMove::default();
    assert!(move_lines(&seen.map, &[wire]).is_err());
}
