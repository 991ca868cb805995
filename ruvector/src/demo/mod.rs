//! `ruvector demo`: Fashion-MNIST into a Postgres, an index on it, and what
//! searches through SQL cost and find. What exists is used again.

mod fashion_mnist;
mod figures;
mod index;
mod load;
mod measure;
mod progress_bar;
mod vector;

use crate::failure::Failure;
use anyhow::Context;
use clap::Args;
use figures::Figures;
use std::path::PathBuf;
use tokio_postgres::{Client, NoTls};

pub const TABLE: &str = "items";
pub const INDEX: &str = "items_embedding_idx";

#[derive(Args)]
pub struct DemoArgs {
    /// Connection string of the Postgres; the extension is created there
    #[arg(long, env = "DATABASE_URL")]
    dsn: String,
    /// Folder with the four files of Fashion-MNIST
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/usr/share/datasets/fashion-mnist"
    )]
    data: PathBuf,
    /// File that keeps the figures of loading and indexing between runs
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
    /// Test queries whose answers are compared with an exact scan
    #[arg(long, value_name = "N", default_value_t = 500)]
    recall_queries: usize,
    /// Test queries that are timed
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    timed_queries: usize,
}

pub fn run(args: DemoArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    Ok(runtime.block_on(tour(args))?)
}

async fn tour(args: DemoArgs) -> anyhow::Result<()> {
    let mut figures = Figures::read(args.figures.as_deref())?;
    let mut client = connect(&args.dsn).await?;
    client
        .batch_execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS ruvector")
        .await
        .context("cannot create the extension ruvector")?;

    if let Some(seconds) = load::load(&mut client, &args.data).await? {
        figures = Figures {
            load_seconds: Some(seconds),
            ..Figures::default()
        };
        figures.write(args.figures.as_deref())?;
    }
    // Each figure is written as soon as it is known: an interruption costs only
    // those that come after it.
    let created = index::create(&client).await?;
    index::wait_until_ready(&client).await?;
    if let Some(created) = created {
        figures.ready_seconds = Some(created.elapsed().as_secs_f64());
        figures.folded_seconds = None;
        figures.write(args.figures.as_deref())?;
    }
    index::wait_until_folded(&client).await?;
    if let Some(created) = created {
        figures.folded_seconds = Some(created.elapsed().as_secs_f64());
        figures.write(args.figures.as_deref())?;
    }

    let queries = fashion_mnist::test_images(&args.data)?;
    measure::assert_index_is_used(&client).await?;
    let recall = measure::recall_at_10(&args.dsn, &client, &queries, args.recall_queries).await?;
    let latency = measure::latency(&client, &queries, args.timed_queries).await?;
    let rows = load::row_count(&client).await?;
    print!("\n{}", figures.table(rows, &recall, &latency));
    print!("\n{}", measure::explain(&client).await?);
    Ok(())
}

/// A session for which an answer that does not come from the cluster is an error.
pub async fn connect(dsn: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls)
        .await
        .context("cannot connect to Postgres")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            eprintln!("the connection to Postgres ended: {error}");
        }
    });
    Ok(client)
}
