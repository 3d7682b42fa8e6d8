//! Plots as SVG, to stand in a document: lines over an axis, and bars that are made of
//! parts. They know nothing of what they show.

use std::fmt::Write;

/// Width of a plot, in pixels, as it is drawn.
const WIDTH: f64 = 860.0;
/// Height of a plot of lines.
const HEIGHT: f64 = 340.0;
/// Around what is drawn: for the axes, and on the right for the lines' names.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Height of a line of text.
const LINE: f64 = 14.0;
/// A bar, with what is between it and the next; and before a group.
const BAR: f64 = 16.0;
const BAR_STEP: f64 = 21.0;
const GROUP_GAP: f64 = 24.0;
/// Where bars begin, behind their names.
const BAR_LEFT: f64 = 250.0;
/// Room behind the longest bar for its figure.
const BAR_RIGHT: f64 = 70.0;
/// Parts narrower than this have no figure in them.
const PART_WIDTH_MIN: f64 = 34.0;
/// Marks on an axis, about.
const TICKS: f64 = 5.0;

/// How a value becomes a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    Linear,
    /// Equal ratios are.
    Log,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What it shows, with the unit.
    pub name: &'a str,
    /// The scale.
    pub scale: Scale,
}

/// A point of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where it is.
    pub x: f64,
    /// Its value.
    pub y: f64,
    /// The range that the value is the median of.
    pub range: (f64, f64),
}

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its colour.
    pub color: &'static str,
    /// Whether it is broken.
    pub dashed: bool,
    /// Its points, from left to right.
    pub points: Vec<Point>,
}

/// A bar that is made of parts.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its parts, from left to right: which of the plot's, and how much.
    pub parts: Vec<(usize, f64)>,
}

/// What a part of a bar is.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its colour, and that of a figure on it.
    pub color: &'static str,
    /// Likewise.
    pub ink: &'static str,
}

/// Text that is no markup.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with as many digits as are read.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 999_500.0 => (value / 1e6, "M"),
        v if v >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        v if v >= 99.95 || v == 0.0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Values that stand on an axis up to `max`: round, and not many.
fn ticks(max: f64) -> Vec<f64> {
    let rough = max / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    (0..).map(|at| f64::from(at) * step).take_while(|value| *value <= max * 1.0001).collect()
}

/// The same on an axis of ratios: powers of ten, with what lies between if they are few.
fn log_ticks(min: f64, max: f64) -> Vec<f64> {
    let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
    let between: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = (first..=last).flat_map(|power| between.iter().map(move |m| m * 10f64.powi(power)));
    all.filter(|value| (min..=max).contains(value)).collect()
}

/// From values to places.
struct Map {
    scale: Scale,
    from: (f64, f64),
    to: (f64, f64),
}

impl Map {
    fn of(&self, value: f64) -> f64 {
        let bent = |v: f64| match self.scale {
            Scale::Linear => v,
            Scale::Log => v.max(f64::MIN_POSITIVE).ln(),
        };
        let (low, high) = (bent(self.from.0), bent(self.from.1));
        let part = if high > low { (bent(value) - low) / (high - low) } else { 0.5 };
        self.to.0 + part * (self.to.1 - self.to.0)
    }
}

/// Places of names that are wanted at `wanted`, so far apart that they can be read, within
/// these bounds as far as there is room.
fn apart(wanted: &[f64], bounds: (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut places = wanted.to_vec();
    let mut least = bounds.0;
    for &at in &order {
        places[at] = places[at].max(least);
        least = places[at] + LINE;
    }
    let mut most = bounds.1;
    for &at in order.iter().rev() {
        places[at] = places[at].min(most);
        most = places[at] - LINE;
    }
    places
}

/// A plot of lines, each with its name at its end. Marks of the first axis are where points
/// are.
pub fn lines(x_axis: Axis<'_>, y_axis: Axis<'_>, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let mut xs: Vec<f64> = points().map(|point| point.x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (Some(&first), Some(&last)) = (xs.first(), xs.last()) else { return String::new() };
    let most = points().map(|point| point.range.1).fold(0.0, f64::max).max(1e-9);
    let least = points().map(|point| point.range.0).fold(f64::MAX, f64::min).max(1e-3);
    let y_range = match y_axis.scale {
        Scale::Linear => (0.0, most * 1.05),
        Scale::Log => (least / 1.3, most * 1.3),
    };
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    // Points do not lie on the edge.
    let x = Map { scale: x_axis.scale, from: (first, last), to: (LEFT + 18.0, right - 18.0) };
    let y = Map { scale: y_axis.scale, from: y_range, to: (bottom, TOP) };
    let mut out = start(HEIGHT, &format!("{} over {}", y_axis.name, x_axis.name));
    let marks = match y_axis.scale {
        Scale::Linear => ticks(y_range.1),
        Scale::Log => log_ticks(y_range.0, y_range.1),
    };
    for value in marks {
        let (at, text) = (y.of(value), short(value));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 8.0,
            at + 4.0,
        );
    }
    for &value in &xs {
        let (at, text) = (x.of(value), short(value));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            bottom + 5.0,
            bottom + 18.0,
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" transform=\"translate(14 {:.1}) rotate(-90)\" \
         text-anchor=\"middle\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 8.0,
        escaped(x_axis.name),
        (TOP + bottom) / 2.0,
        escaped(y_axis.name),
    );
    for series in series {
        draw(&mut out, series, &x, &y, x_axis.name);
    }
    let ends: Vec<(&Series, &Point)> =
        series.iter().filter_map(|series| Some((series, series.points.last()?))).collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, point)| y.of(point.y)).collect();
    let places = apart(&wanted, (TOP + 4.0, bottom));
    for (((series, point), wanted), place) in ends.iter().zip(wanted).zip(places) {
        let end = x.of(point.x);
        let _ = writeln!(
            out,
            "<path class=\"lead\" d=\"M{:.1} {wanted:.1}L{:.1} {place:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{}\" class=\"name\">{}</text>",
            end + 6.0,
            right + 4.0,
            right + 8.0,
            place + 4.0,
            series.color,
            escaped(&series.name),
        );
    }
    out.push_str("</svg>\n");
    out
}

/// One line with its points and their ranges.
fn draw(out: &mut String, series: &Series, x: &Map, y: &Map, x_name: &str) {
    let Series { name, color, dashed, points } = series;
    let dash = if *dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let path: Vec<String> =
        points.iter().map(|p| format!("{:.1} {:.1}", x.of(p.x), y.of(p.y))).collect();
    let _ = writeln!(
        out,
        "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dash}/>",
        path.join("L")
    );
    for point in points {
        let (at, low, high) = (x.of(point.x), y.of(point.range.0), y.of(point.range.1));
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" \
             stroke=\"{color}\" stroke-width=\"1\"/>\
             <circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{color}\"><title>{}: {} at {} \
             {} ({}..{})</title></circle>",
            y.of(point.y),
            escaped(name),
            short(point.y),
            short(point.x),
            escaped(x_name),
            short(point.range.0),
            short(point.range.1),
        );
    }
}

/// A plot of bars in groups, each of which has a scale of its own, with the names of the
/// parts above.
pub fn bars(unit: &str, parts: &[Part], groups: &[(String, Vec<Bar>)]) -> String {
    let all = || groups.iter().flat_map(|(_, bars)| bars);
    let sum = |bar: &Bar| bar.parts.iter().map(|(_, value)| value).sum::<f64>();
    if all().map(sum).fold(0.0, f64::max) <= 0.0 {
        return String::new();
    }
    let used: Vec<usize> = (0..parts.len())
        .filter(|part| all().any(|bar| bar.parts.iter().any(|(p, v)| p == part && *v > 0.0)))
        .collect();
    let count = all().count() as f64;
    let height = 2.0 * LINE + groups.len() as f64 * GROUP_GAP + count * BAR_STEP + 8.0;
    let mut out = start(height, unit);
    let mut at = BAR_LEFT;
    for &part in &used {
        let Part { name, color, .. } = parts[part];
        let _ = writeln!(
            out,
            "<rect x=\"{at:.1}\" y=\"2\" width=\"11\" height=\"11\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"12\">{name}</text>",
            at + 15.0,
        );
        at += 34.0 + 6.6 * name.len() as f64;
    }
    let mut y = LINE;
    for (group, bars) in groups {
        let most = bars.iter().map(sum).fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - BAR_LEFT - BAR_RIGHT) / most;
        y += GROUP_GAP;
        let _ = writeln!(
            out,
            "<text x=\"0\" y=\"{:.1}\" class=\"group\">{}</text>",
            y - 3.0,
            escaped(group)
        );
        for bar in bars {
            let middle = y + BAR / 2.0 + 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
                BAR_LEFT - 8.0,
                escaped(&bar.name)
            );
            let mut x = BAR_LEFT;
            for &(part, value) in bar.parts.iter().filter(|(_, value)| *value > 0.0) {
                let (width, Part { name, color, ink }) = (value * scale, parts[part]);
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" \
                     fill=\"{color}\"><title>{name}: {} {}</title></rect>",
                    short(value),
                    escaped(unit)
                );
                if width >= PART_WIDTH_MIN {
                    let _ = writeln!(
                        out,
                        "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"middle\" \
                         class=\"figure\" style=\"fill:{ink}\">{}</text>",
                        x + width / 2.0,
                        short(value)
                    );
                }
                x += width;
            }
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{middle:.1}\" class=\"sum\">{}</text>",
                x + 6.0,
                short(sum(bar))
            );
            y += BAR_STEP;
        }
    }
    out.push_str("</svg>\n");
    out
}

fn start(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>\n",
        escaped(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.128, "0.13"),
            (9.5, "9.5"),
            (42.25, "42.2"),
            (1024.0, "1024"),
            (10_000.0, "10k"),
            (212_345.0, "212k"),
            (1_520_000.0, "1.52M"),
            (999_900.0, "1M"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(ticks(105.0), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(230_000.0), [0.0, 50e3, 100e3, 150e3, 200e3]);
        assert_eq!(log_ticks(8.0, 300.0), [10.0, 20.0, 50.0, 100.0, 200.0]);
        assert_eq!(log_ticks(1.0, 90_000.0).len(), 5);
    }

    #[test]
    fn names_never_lie_on_each_other() {
        let places = apart(&[100.0, 101.0, 99.0, 300.0], (0.0, 300.0));
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LINE - 1e-9), "{places:?}");
        assert!(places[2] < places[0] && places[0] < places[1]);
    }

    fn series(name: &str, ys: &[f64]) -> Series {
        let point = |(at, &y): (usize, &f64)| Point {
            x: 4f64.powi(at as i32),
            y,
            range: (y * 0.9, y * 1.1),
        };
        let points = ys.iter().enumerate().map(point).collect();
        Series { name: name.to_owned(), color: "#000", dashed: false, points }
    }

    #[test]
    fn a_plot_has_all_points_and_no_markup_of_names() {
        let axis = |name, scale| Axis { name, scale };
        let all = [series("a<b>", &[1.0, 2.0, 3.0]), series("c", &[2.0, 1.0])];
        for scale in [Scale::Linear, Scale::Log] {
            let svg = lines(axis("n", Scale::Log), axis("us", scale), &all);
            assert_eq!(svg.matches("<circle").count(), 5);
            assert!(svg.contains("a&lt;b&gt;") && !svg.contains("a<b>"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
        let none = lines(axis("n", Scale::Linear), axis("us", Scale::Linear), &[]);
        assert!(none.is_empty());
        let one = lines(axis("n", Scale::Log), axis("us", Scale::Linear), &[series("a", &[5.0])]);
        assert!(one.contains("<circle") && !one.contains("NaN"));
    }

    #[test]
    fn bars_are_as_long_as_their_parts() {
        let parts = [
            Part { name: "x", color: "#111", ink: "#fff" },
            Part { name: "unused", color: "#222", ink: "#fff" },
        ];
        let bar =
            |name: &str, value| Bar { name: name.to_owned(), parts: vec![(0, value), (1, 0.0)] };
        let groups = [("g".to_owned(), vec![bar("a", 2.0), bar("b", 4.0)])];
        let svg = bars("us", &parts, &groups);
        let whole = WIDTH - BAR_LEFT - BAR_RIGHT;
        for width in [whole / 2.0, whole] {
            assert!(svg.contains(&format!("width=\"{width:.1}\"")), "{svg}");
        }
        assert!(!svg.contains("unused"));
        assert!(bars("us", &parts, &[]).is_empty());
    }
}
