//! `ruvector.session_token`: a place in this server's history that `session`
//! searches wait for beside their own session's commits. It is how a client that a
//! pooler hands from connection to connection goes on reading its own writes.
//!
//! What can be told of a token by itself is told when it is set; whether its commit
//! is in this server's history, when it is used.

use super::freshness;
use crate::error::{SqlError, SqlState, guard};
use crate::settings;
use cluster_core::freshness::token::{Here, SessionToken};
use cluster_core::wal_position::Lsn;
use pgrx::pg_sys::{self, AsPgCStr};
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};

unsafe extern "C-unwind" {
    // timeline.h, which the bindings leave out.
    fn readTimeLineHistory(timeline: pg_sys::TimeLineID) -> *mut pg_sys::List;
    fn tliInHistory(timeline: pg_sys::TimeLineID, history: *mut pg_sys::List) -> bool;
    fn tliSwitchPoint(
        timeline: pg_sys::TimeLineID,
        history: *mut pg_sys::List,
        next: *mut pg_sys::TimeLineID,
    ) -> pg_sys::XLogRecPtr;
}

thread_local! {
    /// The last text that was found to be waited for, and its position: neither
    /// timeline nor history changes under a backend that reads the cluster.
    static LAST: RefCell<Option<(String, u64)>> = const { RefCell::new(None) };
}

/// The token for everything that was committed before the call, through whichever
/// connection: a client behind a pooler cannot know which one its commit took.
///
/// # Safety
/// In a backend, not in recovery.
pub unsafe fn of_now() -> SessionToken {
    // On disk: a crash must not end this history before a token that was given out.
    let end = freshness::flushed_end_of_wal();
    SessionToken {
        system_identifier: pg_sys::GetSystemIdentifier(),
        timeline: pg_sys::GetWALInsertionTimeLine(),
        commit_end: Lsn(end),
    }
}

/// The position of the token that is set; 0 for none. An error if this server does
/// not have its commit.
///
/// # Safety
/// In a backend, not in recovery.
pub unsafe fn position() -> u64 {
    let text = settings::session_token();
    if text.is_empty() {
        return 0;
    }
    let known = LAST.with_borrow(|last| match last {
        Some((last, position)) if *last == text => Some(*position),
        _ => None,
    });
    if let Some(position) = known {
        return position;
    }
    let position = reachable(&text);
    LAST.set(Some((text, position)));
    position
}

unsafe fn reachable(text: &str) -> u64 {
    let token = match parse(text) {
        Ok(token) => token,
        Err(problem) => refuse(problem),
    };
    match token.position(here(token.timeline)) {
        Ok(position) => position.0,
        Err(problem) => refuse(problem.to_string()),
    }
}

unsafe fn here(made_on: u32) -> Here {
    let timeline = pg_sys::GetWALInsertionTimeLine();
    Here {
        timeline,
        left_at: (made_on < timeline)
            .then(|| left_at(made_on, timeline))
            .flatten(),
        end: Lsn(freshness::end_of_wal()),
    }
}

/// Where the history of `timeline` left an earlier one. A history file that cannot be
/// read is an error of Postgres, which must not jump over our frames.
unsafe fn left_at(made_on: u32, timeline: u32) -> Option<Lsn> {
    pg_sys::ffi::pg_guard_ffi_boundary(|| {
        let history = readTimeLineHistory(timeline);
        let at = match tliInHistory(made_on, history) {
            true => tliSwitchPoint(made_on, history, std::ptr::null_mut()),
            false => 0,
        };
        pg_sys::list_free_deep(history);
        (at != 0).then_some(Lsn(at))
    })
}

fn refuse(problem: String) -> ! {
    SqlError::new(
        SqlState::NOT_IN_PREREQUISITE_STATE,
        "the commit of ruvector.session_token is not in the history of this server",
    )
    .detail(format!("The token cannot be waited for: {problem}."))
    .hint("RESET ruvector.session_token, and take a new token from this server.")
    .raise()
}

fn parse(text: &str) -> Result<SessionToken, String> {
    let token: SessionToken = text
        .parse()
        .map_err(|problem| format!("\"{text}\" is not a session token: {problem}"))?;
    // SAFETY: the control file has been read before any library is loaded.
    let here = unsafe { pg_sys::GetSystemIdentifier() };
    if token.system_identifier != here {
        return Err(format!(
            "the token is of the server with system identifier {}, this one has {here}",
            token.system_identifier
        ));
    }
    Ok(token)
}

/// The check hook of the setting.
///
/// # Safety
/// Called by Postgres alone.
pub unsafe extern "C-unwind" fn check(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    guard(|| {
        if (*value).is_null() {
            return true;
        }
        let text = CStr::from_ptr(*value).to_string_lossy();
        if text.is_empty() {
            return true;
        }
        match parse(&text) {
            Ok(_) => true,
            Err(problem) => {
                detail(&problem);
                false
            }
        }
    })
}

/// GUC_check_errdetail, which is a macro.
unsafe fn detail(problem: &str) {
    pg_sys::pre_format_elog_string(0, std::ptr::null());
    let text = format!("{problem}.").replace('\0', "").as_pg_cstr();
    pg_sys::GUC_check_errdetail_string = pg_sys::format_elog_string(c"%s".as_ptr(), text);
}
