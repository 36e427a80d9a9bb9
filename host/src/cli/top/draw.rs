//! The screen of `hangar top`, a function of what is shown and of the terminal's size.

use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::view::{Task, View};
use crate::cli::view::Device;

/// Columns of a terminal for which everything is laid out; in a wider one bars and texts grow.
const COLUMNS: usize = 80;
/// Columns of a bar there.
const BAR: usize = 6;
/// What is not known.
const NONE: &str = "–";

/// What is shown in one piece or not at all: a line, and lines that explain it.
type Item = Vec<Line<'static>>;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, view: &View) {
    let area = frame.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let gpus: Vec<Item> = view.gpus.iter().map(|gpu| of_gpu(gpu, width)).collect();
    let running: Vec<Item> = view
        .running
        .iter()
        .map(|task| of_task(task, width))
        .collect();
    let waiting: Vec<Item> = view.waiting.iter().map(|task| waits(task, width)).collect();
    let sections = [
        (gpu_titles(width), gpus),
        (task_titles(width), running),
        (waiting_titles(width), waiting),
    ];
    let mut lines = vec![summary(view, width), of_processor(view, width)];
    let wanted = sections
        .each_ref()
        .map(|(_, items)| items.iter().map(Vec::len).sum());
    // The summary, the processor, three titles and the keys are always there.
    let rooms = share(
        wanted,
        height.saturating_sub(lines.len() + sections.len() + 1),
    );
    for ((title, items), room) in sections.into_iter().zip(rooms) {
        lines.push(title);
        lines.extend(cut(items, room));
    }
    lines.resize(height.saturating_sub(1), Line::default());
    lines.push(Line::styled(
        "q quits",
        Style::new().add_modifier(Modifier::DIM),
    ));
    for (line, row) in lines.iter().zip(area.rows()) {
        frame.render_widget(line, row);
    }
}

/// How many lines each section gets: none more than it wants, and a fair part of what there is.
fn share(wanted: [usize; 3], room: usize) -> [usize; 3] {
    let mut given = [0; 3];
    for _ in 0..room {
        let short = (0..3).filter(|&section| given[section] < wanted[section]);
        match short.min_by_key(|&section| given[section]) {
            Some(section) => given[section] += 1,
            None => break,
        }
    }
    given
}

/// The lines of the items that fit, and how many do not.
fn cut(items: Vec<Item>, room: usize) -> Vec<Line<'static>> {
    let all = items.iter().map(Vec::len).sum::<usize>();
    if all <= room {
        return items.into_iter().flatten().collect();
    }
    let (mut lines, count) = (Vec::new(), items.len());
    for (shown, item) in items.into_iter().enumerate() {
        if lines.len() + item.len() >= room {
            lines.truncate(room.saturating_sub(1));
            lines.push(Line::raw(format!("  … {} more", count - shown)));
            break;
        }
        lines.extend(item);
    }
    lines.truncate(room);
    lines
}

/// A text of exactly so many columns; a longer one ends in `…`.
fn fit(text: &str, width: usize) -> String {
    let columns = |text: &str| Span::raw(text).width();
    if columns(text) <= width {
        return format!("{text}{}", " ".repeat(width - columns(text)));
    }
    let mut cut = String::new();
    for character in text.chars() {
        cut.push(character);
        if columns(&cut) >= width {
            cut.pop();
            break;
        }
    }
    if width > 0 {
        cut.push('…');
    }
    let rest = width.saturating_sub(columns(&cut));
    format!("{cut}{}", " ".repeat(rest))
}

/// The same, at the right of its columns.
fn right(text: &str, width: usize) -> String {
    let columns = Span::raw(text).width();
    format!(
        "{}{}",
        " ".repeat(width.saturating_sub(columns)),
        fit(text, columns.min(width))
    )
}

/// A bar of a percentage, and the percentage.
fn bar(percent: Option<f64>, width: usize) -> [Span<'static>; 2] {
    let Some(percent) = percent.map(|percent| percent.clamp(0.0, 100.0)) else {
        return [Span::raw("░".repeat(width)), Span::raw(right(NONE, 5))];
    };
    let full = (percent / 100.0 * width as f64).round() as usize;
    let color = match percent {
        percent if percent < 60.0 => Color::Green,
        percent if percent < 90.0 => Color::Yellow,
        _ => Color::Red,
    };
    let text = format!("{}{}", "█".repeat(full), "░".repeat(width - full));
    [
        Span::styled(text, color),
        Span::raw(right(&format!("{percent:.0}%"), 5)),
    ]
}

/// Columns of a bar in a terminal of this width, where a line has two.
fn bar_width(width: usize) -> usize {
    BAR + (width.saturating_sub(COLUMNS) / 4).min(24)
}

fn bold(text: String) -> Span<'static> {
    Span::styled(text, Modifier::BOLD)
}

fn title(text: &str, width: usize) -> Line<'static> {
    Line::styled(fit(text, width), Modifier::REVERSED)
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn summary(view: &View, width: usize) -> Line<'static> {
    if let Some(problem) = &view.problem {
        return Line::styled(fit(problem, width), Color::Red);
    }
    Line::from(vec![
        bold("hangar".to_owned()),
        Span::raw(format!(
            "  {}  {}  {}, {} of {} wait",
            view.server,
            count(view.gpus.len(), "GPU", "GPUs"),
            count(view.running.len(), "task runs", "tasks run"),
            view.queue.waiting,
            view.queue.size,
        )),
    ])
}

fn of_processor(view: &View, width: usize) -> Line<'static> {
    let bars = bar_width(width);
    let mut line = vec![Span::raw("cpu ")];
    line.extend(bar(view.processor.percent, bars));
    line.push(Span::raw("  memory "));
    line.extend(bar(view.processor.memory_percent, bars));
    Line::from(line)
}

/// Columns of a GPU's name: what the others leave.
fn name_width(width: usize) -> usize {
    let others = 8 + 2 * bar_width(width) + 6 + 12 + 4 + 9 + 8;
    width.saturating_sub(others)
}

fn gpu_titles(width: usize) -> Line<'static> {
    let (name, bars) = (name_width(width), bar_width(width));
    let titles = [
        fit("GPU", 8),
        fit("name", name),
        fit("busy", bars + 6),
        fit("memory GiB", bars + 12),
        right("°C", 4),
        right("W", 9),
        right("tasks", 8),
    ];
    title(&titles.concat(), width)
}

fn of_gpu(gpu: &Device, width: usize) -> Item {
    let bars = bar_width(width);
    let gib = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.1}", bytes as f64 / (1u64 << 30) as f64),
        None => NONE.to_owned(),
    };
    let memory = gpu.memory_used_bytes.zip(gpu.memory_total_bytes);
    let share = memory.map(|(used, total)| used as f64 / total.max(1) as f64 * 100.0);
    let watts = |watts: Option<f64>| watts.map_or(NONE.to_owned(), |watts| format!("{watts:.0}"));
    let celsius = gpu
        .temperature_gpu_c
        .map_or(NONE.to_owned(), |celsius| celsius.to_string());
    let tasks = gpu.current_tasks.map_or(NONE.to_owned(), |tasks| {
        format!("{}+{}", tasks.training, tasks.inference)
    });
    let name = gpu.name.strip_prefix("NVIDIA ").unwrap_or(&gpu.name);
    let [busy, percent] = bar(gpu.utilization_gpu_percent.map(f64::from), bars);
    let [taken, _] = bar(share, bars);
    let memory = format!(
        "{}/{}",
        gib(gpu.memory_used_bytes),
        gib(gpu.memory_total_bytes)
    );
    let power = format!(
        "{}/{}",
        watts(gpu.power_draw_watts),
        watts(gpu.power_limit_enforced_watts)
    );
    let line = vec![
        bold(fit(&gpu.device, 8)),
        Span::raw(fit(name, name_width(width).saturating_sub(1))),
        Span::raw(" "),
        busy,
        percent,
        Span::raw(" "),
        taken,
        Span::raw(fit(&format!(" {memory}"), 12)),
        Span::raw(right(&celsius, 4)),
        Span::raw(right(&power, 9)),
        Span::raw(right(&tasks, 8)),
    ];
    let mut item = vec![Line::from(line)];
    if !gpu.schedulable {
        let color = if gpu.health == "lost" {
            Color::Red
        } else {
            Color::Yellow
        };
        item.push(Line::styled(
            fit(&format!("  {}", gpu.state()), width),
            color,
        ));
    }
    item
}

/// A task's name, what it does with which model: 35 columns.
fn of(task: &Task) -> Vec<Span<'static>> {
    let kind = if task.kind == "training" {
        "train"
    } else {
        "infer"
    };
    let model = format!("{kind} {}/{}", task.plugin, task.model);
    vec![
        bold(fit(&task.id, 12)),
        Span::raw(" "),
        Span::raw(fit(&model, 21)),
        Span::raw(" "),
    ]
}

fn task_titles(width: usize) -> Line<'static> {
    let bars = bar_width(width);
    let titles = [
        fit("running", 13),
        fit("what", 22),
        fit("device", 8),
        fit("progress", bars + 6),
        fit("epoch", 8),
    ];
    title(&(titles.concat() + "message"), width)
}

fn of_task(task: &Task, width: usize) -> Item {
    let mut line = of(task);
    let epoch = task.current_epoch.zip(task.total_epochs);
    let epoch = epoch.map_or(NONE.to_owned(), |(at, of)| format!("{at}/{of}"));
    let device = match task.devices.len() {
        0 | 1 => task.device.as_deref().unwrap_or(NONE).to_owned(),
        several => format!("{several} GPUs"),
    };
    line.push(Span::raw(fit(&device, 8)));
    line.extend(bar(Some(task.progress), bar_width(width)));
    line.push(Span::raw(format!(" {}", fit(&epoch, 8))));
    let used: usize = line.iter().map(Span::width).sum();
    line.push(Span::raw(fit(&task.message, width.saturating_sub(used))));
    vec![Line::from(line)]
}

fn waiting_titles(width: usize) -> Line<'static> {
    let titles = [fit("waiting", 13), fit("what", 22), fit("for", 12)];
    title(&(titles.concat() + "priority, and why it waits"), width)
}

fn waits(task: &Task, width: usize) -> Item {
    let mut line = of(task);
    let wanted = task.device_requested.as_deref().unwrap_or("its choice");
    let wanted = match task.gpus {
        Some(gpus @ 2..) => format!("{gpus} of {wanted}"),
        Some(_) | None => wanted.to_owned(),
    };
    line.push(Span::raw(fit(&wanted, 12)));
    line.push(Span::raw(task.priority.to_string()));
    let mut item = vec![Line::from(line)];
    if let Some(reason) = &task.waiting_reason {
        item.push(Line::styled(
            fit(&format!("  {reason}"), width),
            Color::Yellow,
        ));
    }
    item
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    use super::*;

    fn document(gpus: usize, tasks: usize) -> Value {
        let gpu = |index: usize| {
            json!({
                "device": format!("cuda:{index}"), "name": "NVIDIA H100 80GB HBM3",
                "memory_total_bytes": 81559u64 << 20, "memory_used_bytes": 40960u64 << 20,
                "utilization_gpu_percent": 97, "temperature_gpu_c": 55, "power_draw_watts": 310.4,
                "power_limit_enforced_watts": 700.0,
                "current_tasks": { "training": 1, "inference": 2 },
                "health": "healthy", "schedulable": true,
            })
        };
        let task = |index: usize| {
            json!({
                "task_id": format!("task-{index}"), "task_type": "training", "plugin": "digits",
                "model": "cnn", "device": "cuda:0", "device_requested": "cuda", "priority": 5,
                "progress": 40.0, "current_epoch": 2, "total_epochs": 5, "message": "epoch 2 of 5",
                "waiting_reason": null, "position": index + 1, "created_at": format!("2026-01-01T00:00:{index:02}Z"),
            })
        };
        json!({
            "server": "http://127.0.0.1:8000",
            "gpus": (0..gpus).map(gpu).collect::<Vec<_>>(),
            "processor": { "percent": 63.0, "memory_percent": 41.5 },
            "queue": { "waiting": tasks, "size": 100 },
            "running": (0..tasks).map(task).collect::<Vec<_>>(),
            "waiting": (0..tasks).map(task).collect::<Vec<_>>(),
        })
    }

    fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let cells = terminal.backend().buffer().content();
        let rows = cells.chunks(usize::from(width).max(1));
        let text = |row: &[ratatui::buffer::Cell]| -> String {
            row.iter().map(|cell| cell.symbol()).collect()
        };
        rows.map(|row| text(row).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen_shows_gpus_tasks_and_why_tasks_wait() {
        let mut document = document(2, 2);
        document["gpus"][1] = json!({ "device": "cuda:1", "name": "Tesla T4", "health": "lost",
            "schedulable": false, "reason": "it fell off the bus" });
        // It has waited for so long that it goes before one of a higher priority.
        document["waiting"][0]["position"] = 2.into();
        document["waiting"][1]["position"] = 1.into();
        document["waiting"][1]["priority"] = 7.into();
        document["waiting"][1]["waiting_reason"] = "cuda:0 runs 1 of 1 trainings".into();
        let expected = "\
hangar  http://127.0.0.1:8000  2 GPUs  2 tasks run, 2 of 100 wait
cpu ████░░  63%  memory ██░░░░  42%
GPU     name                 busy        memory GiB          °C        W   tasks
cuda:0  H100 80GB HBM3       ██████  97% ███░░░ 40.0/79.6    55  310/700     1+2
cuda:1  Tesla T4             ░░░░░░    – ░░░░░░ –/–           –      –/–       –
  lost: it fell off the bus
running      what                  device  progress    epoch   message
task-0       train digits/cnn      cuda:0  ██░░░░  40% 2/5     epoch 2 of 5
task-1       train digits/cnn      cuda:0  ██░░░░  40% 2/5     epoch 2 of 5
waiting      what                  for         priority, and why it waits
task-1       train digits/cnn      cuda        7
  cuda:0 runs 1 of 1 trainings
task-0       train digits/cnn      cuda        5








q quits";
        let shown = screen(&View::read(&document).unwrap(), 80, 22);
        assert_eq!(shown.join("\n"), expected);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_sections_share_the_room() {
        let view = View::read(&document(16, 30)).unwrap();
        let shown = screen(&view, 80, 24);
        let lines = |start: &str| shown.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!((lines("cuda:"), lines("task-")), (5, 10));
        assert_eq!(shown.iter().filter(|line| line.contains("more")).count(), 3);
        assert!(shown.contains(&"  … 11 more".to_owned()), "{shown:?}");
        assert_eq!(share([2, 9, 1], 10), [2, 7, 1]);
        assert_eq!(share([2, 1, 1], 10), [2, 1, 1]);
    }

    #[test]
    fn any_size_and_any_text_can_be_drawn() {
        let mut document = document(3, 3);
        let odd = "日本\u{1b}[31m\n\t".repeat(40);
        document["gpus"][0]["name"] = odd.as_str().into();
        document["gpus"][1]["schedulable"] = false.into();
        document["running"][0]["message"] = odd.as_str().into();
        document["running"][1]["progress"] = 1e300.into();
        document["waiting"][0]["waiting_reason"] = odd.as_str().into();
        let view = View::read(&document).unwrap();
        for (width, height) in [(0, 0), (1, 1), (3, 50), (20, 4), (79, 23), (400, 120)] {
            let shown = screen(&view, width, height);
            assert!(!shown.iter().any(|line| line.contains('\u{1b}')));
        }
        let wide = screen(&view, 200, 24);
        assert!(wide[2].len() > 150, "{wide:?}");
    }

    #[test]
    fn a_server_that_does_not_answer_is_told_above_what_it_said_last() {
        let mut view = View::read(&document(1, 0)).unwrap();
        view.problem = Some("no server answers at http://127.0.0.1:8000".to_owned());
        let shown = screen(&view, 80, 24);
        assert_eq!(shown[0], "no server answers at http://127.0.0.1:8000");
        assert!(shown[3].starts_with("cuda:0"), "{shown:?}");
    }

    #[test]
    fn texts_are_cut_to_their_columns() {
        for (text, width, cut) in [
            ("abc", 5, "abc  "),
            ("abcdef", 4, "abc…"),
            ("日本語", 4, "日… "),
            ("abc", 0, ""),
            ("abc", 1, "…"),
        ] {
            assert_eq!(fit(text, width), cut);
        }
        assert_eq!(
            (right("ab", 4).as_str(), right("abcd", 2).as_str()),
            ("  ab", "a…")
        );
    }
}
