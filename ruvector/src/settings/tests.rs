#![allow(clippy::unwrap_used)]

use super::*;
use serde::Deserialize;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    id: u64,
    listen: String,
    advertise: Option<String>,
    coordinators: Vec<String>,
    renew_every: Duration,
    inner: Inner,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Inner {
    zone: String,
    allow: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: 1,
            listen: "127.0.0.1:7401".to_owned(),
            advertise: None,
            coordinators: vec!["127.0.0.1:7401".to_owned()],
            renew_every: Duration::from_secs(3),
            inner: Inner::default(),
        }
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn resolve(
    toml: &str,
    variables: &[(&str, &str)],
    sets: &[&str],
) -> Result<Settings<Config>, SettingsError> {
    let file = file(toml);
    let variables = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let flags: Result<Vec<_>, _> = sets.iter().map(|set| Layer::from_assignment(set)).collect();
    Layers::gather(Some(file.path()), variables, flags?)?
        .resolve(Frame::new("127.0.0.1:7402"), &Config::default())
}

fn problem(result: Result<Settings<Config>, SettingsError>) -> String {
    match result {
        Ok(settings) => panic!("accepted: {:?}", settings.process),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let settings = resolve(
        "id = 2\nlisten = \"file:1\"\nadvertise = \"file:1\"\n",
        &[
            ("RUVECTOR_LISTEN", "variable:1"),
            ("RUVECTOR_ADVERTISE", "variable:1"),
        ],
        &["listen=flag:1"],
    )
    .unwrap();
    assert_eq!(settings.process.listen, "flag:1");
    assert_eq!(settings.process.advertise.as_deref(), Some("variable:1"));
    assert_eq!(settings.process.id, 2);
    assert_eq!(settings.process.renew_every, Duration::from_secs(3));
    assert_eq!(settings.frame.metrics_listen, "127.0.0.1:7402");
}

#[test]
fn text_takes_the_type_of_the_default_it_replaces() {
    let settings = resolve(
        "renew_every = \"2m\"\nmetrics_listen = \"127.0.0.1:1\"\n",
        &[
            ("RUVECTOR_INNER__ZONE", "7"),
            ("RUVECTOR_INNER__ALLOW", "true"),
            ("RUVECTOR_COORDINATORS", "a:1, b:2"),
            ("RUVECTOR_ID", "9"),
        ],
        &["renew_every=200ms"],
    )
    .unwrap();
    assert_eq!(
        settings.process.inner,
        Inner {
            zone: "7".to_owned(),
            allow: true
        }
    );
    assert_eq!(settings.process.coordinators, ["a:1", "b:2"]);
    assert_eq!(settings.process.id, 9);
    assert_eq!(settings.process.renew_every, Duration::from_millis(200));
    assert_eq!(settings.frame.metrics_listen, "127.0.0.1:1");
}

#[test]
fn what_every_process_has_is_set_by_file_variable_and_flag_alike() {
    let settings = resolve(
        "log = \"debug\"\nlog_format = \"json\"\npid_file = \"/file\"\n",
        &[("RUVECTOR_LOG", "warn"), ("RUVECTOR_PID_FILE", "/variable")],
        &["log=error,openraft=off"],
    )
    .unwrap();
    let want = Frame {
        log: "error,openraft=off".to_owned(),
        log_format: LogFormat::Json,
        metrics_listen: "127.0.0.1:7402".to_owned(),
        pid_file: Some("/variable".into()),
    };
    assert_eq!(settings.frame, want);
    let wrong = problem(resolve("", &[("RUVECTOR_LOG_FORMAT", "xml")], &[]));
    assert!(
        wrong.contains("RUVECTOR_LOG_FORMAT") && wrong.contains("`log_format`"),
        "{wrong}"
    );
}

#[test]
fn an_unknown_key_is_an_error_that_says_where_it_stands() {
    let in_file = problem(resolve("lisen = \"x:1\"\n", &[], &[]));
    assert!(
        in_file.contains("unknown setting `lisen`") && in_file.contains("file "),
        "{in_file}"
    );
    let nested = problem(resolve("", &[("RUVECTOR_INNER__ZOEN", "x")], &[]));
    assert!(
        nested.contains("RUVECTOR_INNER__ZOEN") && nested.contains("`inner.zoen`"),
        "{nested}"
    );
    let flag = problem(resolve("", &[], &["nope=1"]));
    assert!(flag.contains("--set nope"), "{flag}");
}

#[test]
fn a_value_of_the_wrong_type_names_key_and_place() {
    let number = problem(resolve("", &[("RUVECTOR_ID", "many")], &[]));
    assert!(
        number.contains("RUVECTOR_ID") && number.contains("`id`"),
        "{number}"
    );
    let duration = problem(resolve("renew_every = \"soon\"\n", &[], &[]));
    assert!(
        duration.contains("`renew_every`") && duration.contains("200ms"),
        "{duration}"
    );
    assert!(problem(resolve("id = \n", &[], &[])).contains("not valid TOML"));
    assert!(problem(resolve("", &[], &["listen"])).contains("key=value"));
}

#[test]
fn variables_of_the_scripts_and_of_ctl_do_not_stop_a_process() {
    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Coordinator {
        id: u64,
    }
    let variables = [
        ("RUVECTOR_CACHE", "/c"),
        ("RUVECTOR_CONFIG", "/f"),
        ("RUVECTOR_COORDINATORS", "a:1"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let layers = Layers::gather(None, variables, []).unwrap();
    assert_eq!(
        layers
            .resolve(Frame::new("m:1"), &Coordinator { id: 4 })
            .unwrap()
            .process
            .id,
        4
    );
}

#[test]
fn the_printed_configuration_gives_the_same_settings_again() {
    let first = resolve(
        "id = 5\nrenew_every = \"250ms\"\n[inner]\nzone = \"a\"\n",
        &[],
        &[],
    )
    .unwrap();
    let printed = to_toml(&first);
    assert!(printed.contains("# advertise is not set"), "{printed}");
    assert!(printed.contains("renew_every = \"250ms\""), "{printed}");
    assert!(
        printed.contains("log = \"info,openraft=warn\""),
        "{printed}"
    );
    let second = resolve(&printed, &[], &[]).unwrap();
    assert_eq!(second.process, first.process);
    assert_eq!(second.frame, first.frame);
}
