//! Throughput and latency against the number in flight, and claims against the size of the table, as
//! pictures.

use std::path::Path;

use kagzi_benches::backends::Failed;
use plotters::prelude::*;

use crate::metrics::{Metrics, Spread};

const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(255, 127, 14)];

/// A line of a picture: its name, and its points along the axis.
type Line = (String, Vec<(f64, f64)>);

/// Writes the pictures for which there are figures.
pub fn curves(metrics: &Metrics, directory: &Path) -> Result<(), Failed> {
    const IN_FLIGHT: &str = "workflows in flight";
    const FINISHED: &str = "finished runs in the table (none at the left edge)";
    let pictures = [
        ("workflows_per_second", "workflows a second", IN_FLIGHT, "throughput.svg"),
        ("p50_ms", "start to result, median, ms", IN_FLIGHT, "latency-p50.svg"),
        ("p99_ms", "start to result, p99, ms", IN_FLIGHT, "latency-p99.svg"),
        ("claims_per_second", "runs claimed and completed a second", FINISHED, "table-size.svg"),
    ];
    for (figure, title, along, file) in pictures {
        let lines = lines(metrics, figure);
        if !lines.is_empty() {
            draw(&lines, title, along, &directory.join(file))?;
        }
    }
    Ok(())
}

/// From names such as `sqlite.grpc.curve.00064.p50_ms`.
fn lines(metrics: &Metrics, figure: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (name, samples) in metrics.iter() {
        let Some((place, rest)) = name.split_once(".curve.") else { continue };
        let Some((x, of)) = rest.split_once('.') else { continue };
        let (Ok(x), Some(spread)) = (x.parse::<f64>(), Spread::of(samples)) else { continue };
        // The axis is logarithmic: nothing at all stands at one.
        let point = (x.max(1.0), spread.median);
        if of != figure {
            continue;
        }
        match lines.last_mut() {
            Some((last, points)) if last == place => points.push(point),
            _ => lines.push((place.to_owned(), vec![point])),
        }
    }
    lines
}

fn draw(lines: &[Line], title: &str, along: &str, file: &Path) -> Result<(), Failed> {
    let all = || lines.iter().flat_map(|(_, points)| points);
    let farthest = all().map(|(x, _)| *x).fold(2.0, f64::max);
    let highest = all().map(|(_, y)| *y).fold(1.0, f64::max);
    let area = SVGBackend::new(file, (900, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((1.0..farthest).log_scale(), 0.0..highest * 1.1)?;
    chart.configure_mesh().x_desc(along).light_line_style(WHITE).draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name.replace('.', ", "))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}
