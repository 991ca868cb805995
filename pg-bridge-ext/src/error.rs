//! Errors with SQLSTATEs of our own (`RV001`…`RV004`), which pgrx's error type
//! cannot carry. [`guard`] is the boundary of every function that Postgres
//! calls; below it, [`SqlError::raise`] unwinds like a panic, so destructors run.

use pgrx::pg_sys::{self, AsPgCStr};
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};

const NOTICE: c_int = pg_sys::elog::PgLogLevel::NOTICE as c_int;
const WARNING: c_int = pg_sys::elog::PgLogLevel::WARNING as c_int;
const ERROR: c_int = pg_sys::elog::PgLogLevel::ERROR as c_int;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    pub const ESTALE: Self = Self("RV001");
    pub const LAGGING: Self = Self("RV002");
    pub const UNAVAILABLE: Self = Self("RV003");
    pub const GATED: Self = Self("RV004");
    pub const CONFIGURATION_LIMIT: Self = Self("53400");
    pub const NOT_AUTHORISED: Self = Self("42501");
    pub const DATA_EXCEPTION: Self = Self("22000");
    pub const OUT_OF_RANGE: Self = Self("22003");
    pub const NULL_NOT_ALLOWED: Self = Self("22004");
    pub const INVALID_PARAMETER: Self = Self("22023");
    pub const INVALID_TEXT: Self = Self("22P02");
    pub const LIMIT_EXCEEDED: Self = Self("54000");
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self("55000");
    pub const NOT_SUPPORTED: Self = Self("0A000");
    pub const WRONG_OBJECT_TYPE: Self = Self("42809");
    pub const CORRUPT_INDEX: Self = Self("XX002");
    pub const CORRUPT_DATA: Self = Self("XX001");
    pub const WARNING: Self = Self("01000");
    pub const SUCCESS: Self = Self("00000");

    /// Postgres packs six bits for each character (MAKE_SQLSTATE).
    fn packed(self) -> c_int {
        self.0
            .bytes()
            .enumerate()
            .map(|(place, byte)| (c_int::from(byte.wrapping_sub(b'0')) & 0x3F) << (6 * place))
            .sum()
    }
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct SqlError {
    state: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl SqlError {
    pub fn new(state: SqlState, message: impl Into<String>) -> Self {
        Self {
            state,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Ends the statement with this error.
    pub fn raise(self) -> ! {
        panic_any(self)
    }

    /// Tells the client, and goes on.
    pub fn warn(self) {
        // SAFETY: called on the backend's main thread; WARNING returns.
        unsafe { CopiedError::from(self).report(WARNING) }
    }

    /// Tells the client what it may want to know, and goes on.
    pub fn notice(self) {
        // SAFETY: called on the backend's main thread; NOTICE returns.
        unsafe { CopiedError::from(self).report(NOTICE) }
    }
}

/// What is left of an error once nothing needs a destructor.
#[derive(Clone, Copy)]
struct CopiedError {
    sqlstate: c_int,
    message: *const c_char,
    detail: *const c_char,
    hint: *const c_char,
}

impl From<SqlError> for CopiedError {
    fn from(error: SqlError) -> Self {
        // A NUL byte cannot reach the client; a message with one is cut there.
        let copy = |text: &str| -> *const c_char {
            text.split('\0').next().unwrap_or_default().as_pg_cstr()
        };
        Self {
            sqlstate: error.state.packed(),
            message: copy(&error.message),
            detail: error.detail.as_deref().map_or(std::ptr::null(), copy),
            hint: error.hint.as_deref().map_or(std::ptr::null(), copy),
        }
    }
}

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

impl CopiedError {
    /// At ERROR this jumps out of the caller's frame, which must hold nothing
    /// that needs a destructor.
    unsafe fn report(self, level: c_int) {
        if !errstart(level, std::ptr::null()) {
            return;
        }
        errcode(self.sqlstate);
        errmsg_internal(c"%s".as_ptr(), self.message);
        if !self.detail.is_null() {
            errdetail_internal(c"%s".as_ptr(), self.detail);
        }
        if !self.hint.is_null() {
            errhint(c"%s".as_ptr(), self.hint);
        }
        if level >= ERROR {
            pg_sys::thread_check::active_thread::clear();
        }
        let finish = || errfinish(c"ruvector".as_ptr(), 0, c"ruvector".as_ptr());
        if level >= ERROR {
            finish();
        } else {
            // A client that has gone, or a full log, makes an error of it: this
            // has to unwind through the caller.
            pg_sys::ffi::pg_guard_ffi_boundary(finish);
        }
    }
}

/// Runs the body of a function that Postgres calls: Rust panics, Postgres
/// errors and [`SqlError`]s all leave it as a Postgres error.
///
/// # Safety
/// Only as the whole body of an `extern "C-unwind"` function.
pub unsafe fn guard<R: Copy>(body: impl FnOnce() -> R) -> R {
    let outcome = pg_sys::panic::pgrx_extern_c_guard(|| {
        catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
            match payload.downcast::<SqlError>() {
                Ok(error) => CopiedError::from(*error),
                Err(other) => resume_unwind(other),
            }
        })
    });
    match outcome {
        Ok(value) => value,
        Err(error) => {
            error.report(ERROR);
            unreachable!("ERROR does not return")
        }
    }
}

/// Defines functions of calling convention 1 with their info records.
macro_rules! sql_functions {
    ($( $(#[$doc:meta])* $info:ident for $name:ident($call:ident) $body:block )*) => { $(
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $info() -> *const pgrx::pg_sys::Pg_finfo_record {
            const INFO: pgrx::pg_sys::Pg_finfo_record =
                pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }

        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            crate::error::guard(|| {
                let $call = crate::error::Call(fcinfo);
                $body
            })
        }
    )* };
}
pub(crate) use sql_functions;

/// The arguments of a call.
#[derive(Clone, Copy)]
pub struct Call(pub pg_sys::FunctionCallInfo);

impl Call {
    /// # Safety
    /// The SQL declaration has an argument of that number (from 0).
    pub unsafe fn datum(self, number: usize) -> pg_sys::Datum {
        (*(*self.0).args.as_ptr().add(number)).value
    }

    /// # Safety
    /// The argument is an `int4`.
    pub unsafe fn int32(self, number: usize) -> i32 {
        self.datum(number).value() as i32
    }

    /// # Safety
    /// The argument is a `vector`.
    pub unsafe fn vector<'a>(self, number: usize) -> &'a [f32] {
        crate::types::vector::elements(self.datum(number))
    }

    /// The NULL result.
    ///
    /// # Safety
    /// Inside the call.
    pub unsafe fn null(self) -> pg_sys::Datum {
        (*self.0).isnull = true;
        pg_sys::Datum::from(0usize)
    }
}

pub fn float8(value: f64) -> pg_sys::Datum {
    pg_sys::Datum::from(value.to_bits())
}
