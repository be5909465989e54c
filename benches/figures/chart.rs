//! Charts as SVG: one or more panels under a title, each with axes, lines and points, and a label
//! at each line's end. The same data gives the same bytes.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::KeyPointHint;
use plotters::coord::ranged1d::NoDefaultFormatting;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::Cartesian2d;
use plotters::prelude::ChartBuilder;
use plotters::prelude::ChartContext;
use plotters::prelude::Circle;
use plotters::prelude::DashedLineSeries;
use plotters::prelude::DrawingArea;
use plotters::prelude::IntoDrawingArea;
use plotters::prelude::IntoFont;
use plotters::prelude::LineSeries;
use plotters::prelude::RGBColor;
use plotters::prelude::SVGBackend;
use plotters::prelude::Text;
use plotters::prelude::WHITE;
use plotters::style::Color;

use crate::common::grouped;

/// Colours that everyone can tell apart, also in grey (Okabe and Ito, 2008).
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const PURPLE: RGBColor = RGBColor(160, 80, 140);
pub(crate) const GREY: RGBColor = RGBColor(110, 110, 110);

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

const PANEL_HEIGHT: u32 = 320;
/// A single panel is wider, as its title is no shorter.
const PANEL_WIDTHS: [u32; 2] = [720, 490];
const TITLE_HEIGHT: u32 = 62;
/// Room for the labels at the lines' ends.
const LABELS: u32 = 160;
const LINE_HEIGHT: i32 = 15;

pub(crate) struct Figure {
    /// The figure's content, in one line.
    pub(crate) title: String,
    /// What is drawn, and the conditions.
    pub(crate) subtitle: String,
    pub(crate) columns: usize,
    pub(crate) panels: Vec<Panel>,
}

pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

#[derive(Clone)]
pub(crate) struct Axis {
    /// The quantity and its unit.
    pub(crate) label: &'static str,
    pub(crate) logarithmic: bool,
    /// The places of numbers; the first and the last are the axis's ends.
    pub(crate) ticks: Vec<f64>,
}

pub(crate) struct Series {
    pub(crate) label: String,
    pub(crate) color: RGBColor,
    pub(crate) style: Style,
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Style {
    /// Measured points, with lines between them.
    Line,
    Dashed,
    Points,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane = Cartesian2d<Axis, Axis>;

impl Axis {
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            value.log10()
        } else {
            value
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let ends = self.range();
        let (start, end) = (self.place(ends.start), self.place(ends.end));
        let part = (self.place(*value) - start) / (end - start);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ticks[0]..self.ticks[self.ticks.len() - 1]
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        if value.fract() == 0.0 {
            grouped(*value as i64)
        } else {
            value.to_string()
        }
    }
}

impl Figure {
    /// Draws it to a file.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let rows = self.panels.len().div_ceil(self.columns);
        let width = PANEL_WIDTHS[usize::from(self.columns > 1)];
        let size = (
            width * self.columns as u32,
            TITLE_HEIGHT + PANEL_HEIGHT * rows as u32,
        );
        let root = SVGBackend::new(path, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(TITLE_HEIGHT);
        head.draw(&Text::new(
            self.title.clone(),
            (16, 14),
            (FONT, 20).into_font().color(&INK),
        ))?;
        head.draw(&Text::new(
            self.subtitle.clone(),
            (16, 42),
            (FONT, 13).into_font().color(&GREY),
        ))?;
        for (panel, area) in self
            .panels
            .iter()
            .zip(body.split_evenly((rows, self.columns)))
        {
            panel.draw(&area)?;
        }
        root.present()?;
        Ok(())
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Result<()> {
        let mut builder = ChartBuilder::on(area);
        if !self.title.is_empty() {
            builder.caption(&self.title, (FONT, 15).into_font().color(&INK));
        }
        let mut chart = builder
            .margin_top(12)
            .margin_left(8)
            .margin_bottom(8)
            .margin_right(LABELS)
            .x_label_area_size(40)
            .y_label_area_size(58)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_labels(self.x.ticks.len())
            .y_labels(self.y.ticks.len())
            .label_style((FONT, 12).into_font().color(&INK))
            .axis_desc_style((FONT, 13).into_font().color(&INK))
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .draw()?;
        for series in &self.series {
            self.draw_series(series, &mut chart)?;
        }
        self.draw_labels(area, &chart)
    }

    fn draw_series<'a>(
        &self,
        series: &Series,
        chart: &mut ChartContext<'a, SVGBackend<'a>, Plane>,
    ) -> Result<()> {
        let color = series.color;
        let places = series.points.clone();
        let dots = places
            .iter()
            .map(|place| Circle::new(*place, 3, color.filled()));
        match series.style {
            Style::Line => {
                chart.draw_series(dots)?;
                chart.draw_series(LineSeries::new(places, color.stroke_width(2)))?;
            }
            Style::Points => {
                chart.draw_series(dots)?;
            }
            Style::Dashed => {
                let line = DashedLineSeries::new(places, 6, 4, color.stroke_width(2));
                chart.draw_series(line)?;
            }
        }
        Ok(())
    }

    /// Labels the series at the right edge, each at its end's height, without overlaps.
    fn draw_labels(
        &self,
        area: &Area<'_>,
        chart: &ChartContext<'_, SVGBackend<'_>, Plane>,
    ) -> Result<()> {
        let (left, top) = area.get_base_pixel();
        let mut labels: Vec<(i32, &Series)> = self
            .series
            .iter()
            .filter(|series| !series.label.is_empty())
            .filter_map(|series| Some((series.points.last()?, series)))
            .map(|((x, y), series)| {
                let pixel = chart.backend_coord(&(*x, *y));
                (pixel.1 - top, series)
            })
            .collect();
        labels.sort_by_key(|(y, _)| *y);
        let (_, plot) = chart.plotting_area().get_pixel_range();
        let lowest = plot.end - top - LINE_HEIGHT / 2;
        // Moved down where needed, then back up if the last would leave the panel.
        let mut free = i32::MIN;
        for (y, _) in &mut labels {
            *y = free.max(*y);
            free = *y + LINE_HEIGHT;
        }
        let mut free = lowest;
        for (y, _) in labels.iter_mut().rev() {
            *y = free.min(*y);
            free = *y - LINE_HEIGHT;
        }
        let (columns, _) = chart.plotting_area().get_pixel_range();
        for (y, series) in labels {
            let place = (columns.end - left + 8, y - 6);
            let style = (FONT, 13).into_font().color(&series.color);
            area.draw(&Text::new(series.label.clone(), place, style))?;
        }
        Ok(())
    }
}
