//! What a checkpoint of an index takes to write and to load, and what searches it gives.
//!
//! `cargo run --release -p index-engine --example checkpoint -- FOLDER|noise:ROWSxDIMENSIONS [file=checkpoint.bin] [m=16] [ef_construction=100] [threads=2] [ef=50] [queries=1000] [rounds=5] [columns=0]`
//! FOLDER holds `base.npy` and `query.npy` (f32, C order), as `--example search` takes them;
//! distances are L2. Of columns, the first holds integers, the second floats, the third byte
//! strings, and so on; every row has a string of its own. The file is removed in the end.
//!
//! "Cold" is with the file's pages given up by the system beforehand, as far as the machine
//! itself has no cache below. Queries a second are of the thread's CPU time, the median over
//! the rounds; the index that was built is gone when the loaded one is searched.

#![allow(clippy::print_stdout)]

#[path = "../search/arguments.rs"]
mod arguments;
#[path = "../search/npy.rs"]
#[allow(dead_code)]
mod npy;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use arguments::Arguments;
use index_engine::checkpoint::{Loading, Source};
use index_engine::{ColumnType, IndexParams, Metric, PartitionIndex, Representation, Value};

type Vectors = Vec<Vec<f32>>;
type Found = Vec<Vec<u32>>;

/// What the system has in memory is taken from there, the rest is read past it: quicker, and
/// nothing else has to leave memory for it.
struct OnDisk {
    file: File,
    direct: Option<File>,
    bytes: u64,
}

/// What reading past the system's memory asks of offsets, lengths and addresses.
const DIRECT_BYTES: usize = 4096;

impl OnDisk {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // What is read ahead would seem to have been in memory.
        advise(&file, libc::POSIX_FADV_RANDOM);
        let bytes = file.metadata()?.len();
        let mut options = OpenOptions::new();
        let direct = options.read(true).custom_flags(libc::O_DIRECT).open(path);
        Ok(Self {
            file,
            direct: direct.ok(),
            bytes,
        })
    }

    /// True if the system had it all in memory.
    fn read_resident(&self, offset: u64, into: &mut [u8]) -> bool {
        let part = libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        };
        let (fd, offset) = (self.file.as_raw_fd(), offset as libc::off_t);
        // SAFETY: one buffer of that length, which is ours alone.
        #[allow(unsafe_code)]
        let read = unsafe { libc::preadv2(fd, &raw const part, 1, offset, libc::RWF_NOWAIT) };
        read == into.len() as isize
    }
}

impl Source for OnDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.read_resident(offset, into) {
            return Ok(());
        }
        let parts = [offset as usize, into.as_ptr().addr(), into.len()];
        let is_aligned = parts.iter().all(|part| part.is_multiple_of(DIRECT_BYTES));
        match &self.direct {
            Some(direct) if is_aligned && direct.read_exact_at(into, offset).is_ok() => Ok(()),
            _ => self.file.read_exact_at(into, offset),
        }
    }
}

/// Rows and queries.
fn data(name: &str, queries: usize) -> Result<(Vectors, Vectors), Box<dyn Error>> {
    let Some(size) = name.strip_prefix("noise:") else {
        let read = |file: &str, most: usize| -> Result<Vectors, Box<dyn Error>> {
            let array = npy::Array::read(&Path::new(name).join(file))?;
            Ok((0..array.len().min(most))
                .map(|row| array.floats(row))
                .collect())
        };
        return Ok((read("base.npy", usize::MAX)?, read("query.npy", queries)?));
    };
    let (rows, dimensions) = size.split_once('x').ok_or("want noise:ROWSxDIMENSIONS")?;
    let (rows, dimensions): (usize, usize) = (rows.parse()?, dimensions.parse()?);
    let mut state = 7u64;
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut vectors = |count: usize| -> Vectors {
        let mut vector = || (0..dimensions).map(|_| unit() + unit() + unit()).collect();
        (0..count).map(|_| vector()).collect()
    };
    Ok((vectors(rows), vectors(queries)))
}

/// Seconds of this thread's CPU time.
fn cpu_seconds() -> f64 {
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}

fn search(index: &PartitionIndex, query: &[f32], ef: usize) -> Result<Vec<u32>, Box<dyn Error>> {
    let mut cursor = index.cursor(query, ef, u64::MAX, false)?;
    let hits = cursor.next_page(index, 10).hits;
    Ok(hits.iter().map(|hit| hit.0.0).collect())
}

/// Queries a CPU second, and what the queries found.
fn measure(
    index: &PartitionIndex,
    queries: &Vectors,
    (ef, rounds): (usize, usize),
) -> Result<(f64, Found), Box<dyn Error>> {
    let mut rates = Vec::new();
    let mut found = Vec::new();
    for _ in 0..rounds {
        let began = cpu_seconds();
        found.clear();
        for query in queries {
            found.push(search(index, query, ef)?);
        }
        rates.push(queries.len() as f64 / (cpu_seconds() - began));
    }
    rates.sort_by(f64::total_cmp);
    Ok((rates[rates.len() / 2], found))
}

/// A value of a row that has the hash: of integers and floats there are a thousand.
fn value(kind: ColumnType, hash: u64) -> Value {
    match kind {
        ColumnType::Int => Value::Int((hash >> 40) as i64 % 1_000),
        ColumnType::Float => Value::Float((hash >> 20) as f64 % 1_000.0),
        ColumnType::Bool => Value::Bool(hash >> 63 == 1),
        ColumnType::Bytes => Value::Bytes(format!("row {hash:x}").into_bytes().into()),
    }
}

fn build(
    rows: Vectors,
    params: IndexParams,
    columns: usize,
    threads: usize,
) -> Result<PartitionIndex, Box<dyn Error>> {
    let types = [ColumnType::Int, ColumnType::Float, ColumnType::Bytes];
    let types: Vec<ColumnType> = types.into_iter().cycle().take(columns).collect();
    let index = PartitionIndex::with_columns(params, &types, None)?;
    let began = Instant::now();
    for (row, vector) in rows.into_iter().enumerate() {
        let hash = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let attributes: Vec<Value> = types.iter().map(|kind| value(*kind, hash)).collect();
        index.insert_with(&vector, hash, &attributes, |_| {})?;
    }
    on_threads(threads, || {
        index.fold(usize::MAX);
        Ok(())
    })?;
    println!("built in {:.2} s", began.elapsed().as_secs_f64());
    Ok(index)
}

/// Returns the seconds of CPU time that they took together.
fn on_threads<F>(threads: usize, work: F) -> Result<f64, Box<dyn Error>>
where
    F: Fn() -> Result<(), index_engine::checkpoint::CheckpointError> + Sync,
{
    std::thread::scope(|scope| {
        let timed = || work().map(|()| cpu_seconds());
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
        let mut spent = 0.0;
        for thread in running {
            spent += thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(spent)
    })
}

fn write(index: &PartitionIndex, file: &Path) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let checkpoint = index.checkpoint();
    let begun = began.elapsed();
    let mut sink = File::create(file)?;
    let bytes = checkpoint.write(index, &mut sink)?;
    let written = began.elapsed();
    sink.sync_all()?;
    let synced = began.elapsed().as_secs_f64();
    let mb = bytes as f64 / 1e6;
    println!(
        "begun in {:.1} ms; {mb:.0} MB written in {:.2} s, on disk after {synced:.2} s: {:.0} MB/s",
        begun.as_secs_f64() * 1e3,
        written.as_secs_f64(),
        mb / synced
    );
    Ok(())
}

fn advise(file: &File, advice: libc::c_int) {
    // SAFETY: a system call on an open file's descriptor; it touches no memory.
    #[allow(unsafe_code)]
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice);
    }
}

fn load(
    path: &Path,
    threads: usize,
    query: &[f32],
    is_cold: bool,
) -> Result<PartitionIndex, Box<dyn Error>> {
    let source = OnDisk::open(path)?;
    let bytes = source.bytes;
    if is_cold {
        advise(&source.file, libc::POSIX_FADV_DONTNEED);
    }
    let began = Instant::now();
    let loading = Loading::open(&source, None)?;
    let reading = on_threads(threads, || loading.read(&source))?;
    let read = began.elapsed().as_secs_f64();
    let before = cpu_seconds();
    let index = loading.finish()?;
    let checking = cpu_seconds() - before;
    let loaded = began.elapsed().as_secs_f64();
    let first = Instant::now();
    search(&index, query, 50)?;
    println!(
        "{}: read and verified in {read:.2} s ({:.0} MB/s, {reading:.2} CPU s), checked after {loaded:.2} s ({checking:.2} CPU s); the first search took {:.2} ms",
        if is_cold { "cold" } else { "warm" },
        bytes as f64 / 1e6 / read,
        first.elapsed().as_secs_f64() * 1e3,
    );
    Ok(index)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::given();
    let given = |name: &str, default: &str| arguments.value(name, default);
    let name = arguments.first().ok_or("want a data set")?;
    let (rows, queries) = data(name, given("queries", "1000").parse()?)?;
    let params = IndexParams {
        metric: Metric::L2,
        dimensions: rows[0].len(),
        m: given("m", "16").parse()?,
        ef_construction: given("ef_construction", "100").parse()?,
        representation: Representation::default(),
        ..IndexParams::default()
    };
    let threads = given("threads", "2").parse()?;
    let effort = (given("ef", "50").parse()?, given("rounds", "5").parse()?);
    let path = PathBuf::from(given("file", "checkpoint.bin"));
    let columns = given("columns", "0").parse()?;
    let index = build(rows, params, columns, threads)?;
    let (before, found) = measure(&index, &queries, effort)?;
    write(&index, &path)?;
    drop(index);
    let mut index = load(&path, threads, &queries[0], true)?;
    for _ in 0..3 {
        drop(index);
        index = load(&path, threads, &queries[0], false)?;
    }
    std::fs::remove_file(&path)?;
    let (after, found_again) = measure(&index, &queries, effort)?;
    assert!(found == found_again, "a loaded index finds what was found");
    println!(
        "{before:.0} queries a CPU second before, {after:.0} after: {:.3}",
        after / before
    );
    Ok(())
}
