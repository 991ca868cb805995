//! What the planner is told. It reads shared memory only: planning never waits
//! for the network.

use super::metapage::Metapage;
use crate::catalog::prerequisites;
use crate::error::guard;
use crate::settings;
use crate::worker::{self, ViewState};
use pgrx::pg_sys;

/// Reaching the cluster and walking a graph, in units of `cpu_operator_cost`
/// per candidate. Small: one search stands against reading the whole table,
/// whose out-of-line vectors the planner does not count.
const OPERATORS_PER_CANDIDATE: f64 = 10.0;
/// Looking one row up by its key.
const OPERATORS_PER_ROW: f64 = 50.0;

pub unsafe extern "C-unwind" fn amcostestimate(
    _root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    _loops: f64,
    startup_cost: *mut pg_sys::Cost,
    total_cost: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    guard(|| {
        *correlation = 0.0;
        *pages = 1.0;
        let hypothetical = (*(*path).indexinfo).hypothetical;
        let order_bys = (*path).indexorderbys;
        // A scan is ordered by one distance; a second one would be left out.
        if order_bys.is_null()
            || (*order_bys).length != 1
            || hypothetical
            || !can_answer((*(*path).indexinfo).indexoid)
        {
            *startup_cost = f64::INFINITY;
            *total_cost = f64::INFINITY;
            *selectivity = 0.0;
            return;
        }
        let rows = (*(*path).indexinfo).tuples;
        let operator = pg_sys::cpu_operator_cost;
        *startup_cost = f64::from(settings::ef_search()) * OPERATORS_PER_CANDIDATE * operator;
        *total_cost =
            *startup_cost + rows * (pg_sys::cpu_index_tuple_cost + OPERATORS_PER_ROW * operator);
        *selectivity = 1.0;
    })
}

/// Whether the cluster has the collection, as far as this server knows. An
/// outage keeps the plan: the scan then decides between a bounded exact scan and
/// an error, where a plan without the index would read every table whole.
unsafe fn can_answer(index_oid: pg_sys::Oid) -> bool {
    if prerequisites::missing().is_some() || pg_sys::RecoveryInProgress() {
        return false;
    }
    let index = pg_sys::index_open(index_oid, pg_sys::NoLock as i32);
    let metapage = Metapage::read(index);
    pg_sys::index_close(index, pg_sys::NoLock as i32);
    if metapage.definition_generation == 0 {
        return false;
    }
    let view = worker::index_view(
        pg_sys::MyDatabaseId.to_u32(),
        index_oid.to_u32(),
        metapage.definition_generation,
    );
    matches!(
        view.state,
        ViewState::Ready | ViewState::Disconnected | ViewState::Unidentified
    )
}
