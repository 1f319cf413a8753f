//! `palisade top`: what the daemon does, live.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use palisade::{Error, ErrorKind, Priority, Result, units};
use palisade_rpc::{AgentInfo, Client, Health, Nothing, unix_ms};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use ratatui::{Frame, Terminal};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::output;
use crate::table::printable;

/// Columns and rows of a frame that goes to no terminal.
const TEXT_SIZE: (u16, u16) = (110, 40);

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::parse_duration)]
    interval: Duration,
    /// Look once and end, as without a terminal
    #[arg(long)]
    once: bool,
    /// Print one JSON object for each look
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What there is to see at one moment.
#[derive(Debug, Serialize)]
struct Look {
    unix_ms: u64,
    daemon: Health,
    /// Tasks that wait for a worker, by class.
    queued: BTreeMap<String, u64>,
    /// Tasks that got their outcome since the daemon started, by its name.
    finished: BTreeMap<String, u64>,
    /// Of these, since the last look.
    finished_per_second: Option<f64>,
    agents: Vec<AgentInfo>,
}

pub(crate) async fn run(options: Top) -> Result<Exit> {
    let client = options.connection.client()?;
    // Not so short that looking is all the daemon does.
    let interval = options.interval.max(Duration::from_millis(50));
    let once = options.once || !options.json && !io::stdout().is_terminal();
    if options.json || once {
        let mut last = None;
        loop {
            let look = look(&client, &mut last).await?;
            if options.json {
                output::print_json(&serde_json::json!(look));
            } else {
                output::print(&text(&look));
            }
            if once {
                return Ok(Exit::Success);
            }
            tokio::time::sleep(interval).await;
        }
    }
    let mut terminal = ratatui::try_init().map_err(no_terminal)?;
    let ended = watch(&client, interval, |look| terminal.draw(|frame| draw(frame, look)).map(drop)).await;
    ratatui::restore();
    ended.map(|()| Exit::Success)
}

/// Draws until somebody wants to quit.
async fn watch(client: &Client, interval: Duration, mut draw: impl FnMut(&Look) -> io::Result<()>) -> Result<()> {
    let (tell, mut keys) = mpsc::channel(16);
    // It waits for keys until the process ends.
    let thread = std::thread::Builder::new().name("palisade-keys".to_owned());
    let waits = move || {
        while let Ok(event) = event::read() {
            if tell.blocking_send(event).is_err() {
                return;
            }
        }
    };
    thread.spawn(waits).map_err(no_terminal)?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    let mut shown = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => shown = Some(look(client, &mut last).await?),
            key = keys.recv() => match key {
                Some(event) if !is_quit(&event) => {}
                _ => return Ok(()),
            },
        }
        // Also after a change of the terminal's size.
        if let Some(shown) = &shown {
            draw(shown).map_err(no_terminal)?;
        }
    }
}

fn is_quit(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn no_terminal(error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "show", "the terminal cannot be used")
        .with_source(error)
        .with_help("try `palisade top --once`")
}

/// When the last look was and how many tasks had ended then.
type Last = Option<(Instant, u64)>;

async fn look(client: &Client, last: &mut Last) -> Result<Look> {
    let metrics = client.metrics(&Nothing {}).await?.text;
    let daemon = client.health(&Nothing {}).await?;
    // An executor that ends has no agents to show.
    let agents = if daemon.draining { Vec::new() } else { client.agents_list(&Nothing {}).await?.agents };
    let finished = sums(&metrics, "palisade_tasks_finished_total", "outcome");
    let (now, total) = (Instant::now(), finished.values().sum::<u64>());
    let per_second = |(then, before): (Instant, u64)| {
        total.saturating_sub(before) as f64 / now.duration_since(then).as_secs_f64().max(1e-3)
    };
    let finished_per_second = last.replace((now, total)).map(per_second);
    let queued = sums(&metrics, "palisade_queue_tasks", "class");
    Ok(Look { unix_ms: unix_ms(SystemTime::now()), daemon, queued, finished, finished_per_second, agents })
}

/// The values of a metric in the text format of OpenMetrics, added up by one of its labels.
fn sums(metrics: &str, name: &str, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for line in metrics.lines() {
        let Some((labels, value)) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')?.split_once("} "))
        else {
            continue;
        };
        let of = labels.split(',').find_map(|pair| pair.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"'));
        if let (Some(of), Ok(value)) = (of, value.parse::<f64>()) {
            *sums.entry(of.to_owned()).or_default() += value as u64;
        }
    }
    sums
}

/// A frame as text.
fn text(look: &Look) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(TEXT_SIZE.0, TEXT_SIZE.1));
    let Ok(_) = terminal.draw(|frame| draw(frame, look));
    let buffer = terminal.backend().buffer();
    let line = |row: u16| {
        let cells = (0..TEXT_SIZE.0).map(|column| buffer[(column, row)].symbol());
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    let lines: String = (0..TEXT_SIZE.1).map(line).collect();
    lines.trim_end().to_owned() + "\n"
}

fn draw(frame: &mut Frame<'_>, look: &Look) {
    let heights = [Constraint::Length(1), Constraint::Length(10), Constraint::Min(3), Constraint::Length(1)];
    let [head, tasks, agents, foot] = Layout::vertical(heights).areas(frame.area());
    let [queue, ends] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(tasks);
    let daemon = &look.daemon;
    let uptime = units::display_duration(Duration::from_secs(daemon.uptime_ms / 1000));
    let kept = if daemon.durable { "durable" } else { "in memory" };
    let draining = if daemon.draining { ", draining" } else { "" };
    let failing = daemon.journal_error.as_ref().map(|error| format!(", {}", printable(error))).unwrap_or_default();
    let plugins = daemon.plugins;
    let title = format!("palisade {}: up {uptime}, {kept}{draining}, {plugins} plugins{failing}", daemon.version);
    frame.render_widget(Line::styled(title, Style::new().add_modifier(Modifier::BOLD)), head);

    let number = |name: &str, count: u64| Row::new([name.to_owned(), count.to_string()]);
    let class = |class: &Priority| number(class.as_str(), look.queued.get(class.as_str()).copied().unwrap_or_default());
    let others = [
        ("delayed", daemon.tasks.delayed),
        ("running", daemon.tasks.running),
        ("dead letters", daemon.tasks.dead_lettered),
    ];
    let rows = Priority::ALL.iter().map(class).chain(others.map(|(name, count)| number(name, count)));
    let columns = [Constraint::Length(16), Constraint::Min(8)];
    frame.render_widget(Table::new(rows, columns).block(Block::bordered().title("queued by class")), queue);

    let rate = look.finished_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let ended = look.finished.iter().filter(|(_, count)| **count > 0).map(|(name, count)| number(name, *count));
    let title = format!("finished, {rate}/s");
    frame.render_widget(Table::new(ended, columns).block(Block::bordered().title(title)), ends);

    let row = |agent: &AgentInfo| {
        let millis = |millis: f64| format!("{millis:.1} ms");
        let ended: u64 = agent.outcomes.values().sum();
        let state = serde_json::json!(agent.state);
        Row::new([
            printable(&agent.name),
            state.as_str().unwrap_or_default().to_owned(),
            agent.running.to_string(),
            ended.to_string(),
            millis(agent.latency_p50_ms),
            millis(agent.latency_p90_ms),
            millis(agent.latency_p99_ms),
            units::display_bytes(agent.memory_peak_bytes),
        ])
    };
    let widths = [
        Constraint::Min(20),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(10),
    ];
    let heading = Row::new(["AGENT", "STATE", "RUNNING", "ENDED", "P50", "P90", "P99", "PEAK"]);
    let table = Table::new(look.agents.iter().map(row), widths).header(heading);
    let title = format!("agents: {}", states(&look.agents));
    frame.render_widget(table.block(Block::bordered().title(title)), agents);
    frame.render_widget(Paragraph::new("q quits"), foot);
}

/// How many agents are in each state.
fn states(agents: &[AgentInfo]) -> String {
    let mut states = BTreeMap::<String, usize>::new();
    for agent in agents {
        *states.entry(serde_json::json!(agent.state).as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let counts: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

#[cfg(test)]
mod tests {
    use palisade_rpc::AgentState;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn shown() -> Look {
        let agent = serde_json::json!({
            "name": "resize\u{1b}[2J@0123", "plugin": "0".repeat(64), "state": "busy", "running": 2,
            "outcomes": { "completed": 7, "failed": 1 }, "restarts": 0, "latency_p50_ms": 1.25, "latency_p90_ms": 2.0,
            "latency_p99_ms": 30.0, "cpu_time_ms": 5.0, "memory_peak_bytes": 65536, "memory_entries": 0, "memory_bytes": 0,
        });
        let daemon = serde_json::json!({
            "version": "1.2.3", "draining": false, "durable": true, "uptime_ms": 61_000, "plugins": 3,
            "tasks": { "queued": 5, "delayed": 4, "running": 2, "dead_lettered": 1 },
        });
        Look {
            unix_ms: 0,
            daemon: serde_json::from_value(daemon).unwrap(),
            queued: [("high".to_owned(), 5)].into(),
            finished: [("completed".to_owned(), 7), ("failed".to_owned(), 1), ("denied".to_owned(), 0)].into(),
            finished_per_second: Some(3.25),
            agents: vec![serde_json::from_value(agent).unwrap()],
        }
    }

    #[test]
    fn a_frame_shows_queues_outcomes_and_agents() {
        let text = text(&shown());
        for expected in [
            "palisade 1.2.3: up 61 s, durable, 3 plugins",
            "high             5",
            "dead letters     1",
            "finished, 3.2/s",
            "completed        7",
            "agents: 1 busy",
            "1.2 ms",
            "30.0 ms",
            "q quits",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains("denied") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_frame_fits_into_any_terminal() {
        for size in [(1, 1), (3, 7), (20, 5), (80, 24), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
            terminal.draw(|frame| draw(frame, &shown())).unwrap();
            terminal.backend_mut().resize(size.1 + 1, size.0 + 1);
            terminal.draw(|frame| draw(frame, &shown())).unwrap();
            let area = terminal.backend().buffer().area;
            assert_eq!((area.width, area.height), (size.1 + 1, size.0 + 1));
        }
    }

    #[test]
    fn values_are_added_up_by_a_label() {
        let metrics = "# TYPE a counter\na_total{class=\"x\",outcome=\"ok\"} 3\na_total{class=\"y\",outcome=\"ok\"} 4\n\
            a_total{class=\"y\",outcome=\"bad\"} 1\nab_total{class=\"y\",outcome=\"ok\"} 9\na_total 5\n# EOF\n";
        assert_eq!(sums(metrics, "a_total", "outcome"), [("bad".to_owned(), 1), ("ok".to_owned(), 7)].into());
        assert_eq!(sums(metrics, "a_total", "colour"), BTreeMap::new());
        assert_eq!(sums("a{class=\"x\"} 2.0\n", "a", "class"), [("x".to_owned(), 2)].into());
    }

    #[test]
    fn q_quits() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(is_quit(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(is_quit(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!is_quit(&key(KeyCode::Char('c'), KeyModifiers::NONE)) && !is_quit(&Event::Resize(1, 1)));
        assert_eq!(AgentState::Busy, shown().agents[0].state);
    }
}
