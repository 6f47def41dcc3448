import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from pvae import plots
from pvae.errors import InputError

RNG = np.random.default_rng(0)
GREY, COLOUR, PROFILES = RNG.random((13, 8, 8)), RNG.random((5, 3, 8, 8)), RNG.normal(size=(11, 50))
DIGITS = RNG.integers(0, 10, 200)
KS = [1, 10, 100]
BOUND, ERROR = {"vae": [-90, -88, -87], "iwae": [-89, -87.5, -86.8]}, {"vae": [0.1] * 3, "iwae": [0.1] * 3}

# every figure that a run can ask for, edges included; the key is the test's id
FIGURES = {
    "curves": lambda: plots.learning_curves([1, 2, 3], {"train": [-9, -8, -7], "gaps": [-9, np.nan, -7]}),
    "curves, one epoch": lambda: plots.learning_curves([1], {"train": [-200.0]}),
    "curves, flat": lambda: plots.learning_curves([1, 2], {"train": [0, 0]}),
    "curves, many": lambda: plots.learning_curves([1, 2], {f"run {i}": [0, i] for i in range(25)}),
    "reconstructions": lambda: plots.reconstructions(GREY, GREY),
    "reconstructions, one": lambda: plots.reconstructions(GREY[:1], GREY[:1]),
    "reconstructions, one with a title": lambda: plots.reconstructions(GREY[:1], GREY[:1], title="a title, " * 4),
    "reconstructions, two with a title": lambda: plots.reconstructions(GREY[:2], GREY[:2], title="a title of the two"),
    "reconstructions, colour": lambda: plots.reconstructions(COLOUR, COLOUR, columns=4),
    "reconstructions, table": lambda: plots.reconstructions(PROFILES[:7], PROFILES[:7], title="a title"),
    "samples, of one datum far out": lambda: plots.samples(np.full((1, 3), 1e3), PROFILES.reshape(-1, 1).repeat(3, 1)),
    "images": lambda: plots.image_grid(GREY, title="samples"),
    "images, one": lambda: plots.image_grid(GREY[:1], title="a title that is wider than the one image"),
    "images, scaled": lambda: plots.image_grid(GREY * 3 - 1),
    "images, scaled to long numbers": lambda: plots.image_grid(-4.51e-6 - GREY / 1e8),
    "images, constant": lambda: plots.image_grid(np.full((2, 4, 4), 7)),
    "images, colour": lambda: plots.image_grid(COLOUR * 3 - 1),
    "images, large": lambda: plots.image_grid(RNG.random((2, 1, 700, 700))),
    "a table": lambda: plots.image_grid(PROFILES[:7], title="table"),
    "a table, one row of two": lambda: plots.image_grid([[1, 2]]),
    "a table of one column": lambda: plots.samples(PROFILES[:, :1], PROFILES[:5, :1], title="a title, " * 7),
    "samples of two columns": lambda: plots.samples(PROFILES[:, :2], PROFILES[:5, :2]),
    "samples of 50": lambda: plots.samples(PROFILES, PROFILES[:5], title="a title"),
    "plane": lambda: plots.latent_plane(GREY[:12], [-2, -1, 1, 2], [-1, 0, 1], title="decoder"),
    "plane, one": lambda: plots.latent_plane(GREY[:1], [0.37], [0.37]),
    "scatter": lambda: plots.latent_scatter(RNG.normal(size=(200, 2)), DIGITS, title="posterior"),
    "scatter, no labels": lambda: plots.latent_scatter(RNG.normal(size=(200, 2))),
    "scatter, components": lambda: plots.latent_scatter(RNG.normal(size=(200, 5)), DIGITS),
    "scatter, 30 labels": lambda: plots.latent_scatter(RNG.normal(size=(200, 5)), np.arange(200) % 30),
    "scatter, one datum": lambda: plots.latent_scatter([[1, 2, 3]]),
    "scatter, collapsed": lambda: plots.latent_scatter(np.zeros((9, 3))),
    "histogram": lambda: plots.latent_scatter(RNG.normal(size=(200, 1)), DIGITS),
    "histogram, one value": lambda: plots.latent_scatter(np.zeros((9, 1))),
    "one unit, numbers": lambda: plots.latent_scatter(RNG.normal(size=(200, 1)), RNG.normal(size=200)),
    "units": lambda: plots.active_units([1.0, 0.5, 1e-4, 0.0]),
    "units, none": lambda: plots.active_units(np.zeros(8)),
    "units, one": lambda: plots.active_units([0.7]),
    "bound": lambda: plots.bound_against_k(KS, BOUND, ERROR, exact=-86.5),
    "bound, many exact": lambda: plots.bound_against_k(
        [1],
        {f"run {i}": [-i] for i in range(25)},
        {f"run {i}": [0.1] for i in range(25)},
        exact={"run 9": 0, "run 0": 1},
    ),
    "k-hat": lambda: plots.khat_quantiles(
        {"vae": np.linspace(-0.2, 1.3, 200) ** 3, "a long name\nin two": [0.1, 0.9]}, 0.7
    ),
    "k-hat, infinite": lambda: plots.khat_quantiles({"exact": [-np.inf] * 3, "one": [np.inf]}, 0.7),
    "k-hat, many": lambda: plots.khat_quantiles({f"run {i}": np.arange(9) / (i + 1) for i in range(25)}, 0.7),
    "k-hat, many infinite": lambda: plots.khat_quantiles(
        {f"a name of 20 here {i}": [-np.inf, 0.1, np.inf] * 99 for i in range(9)}, 0.7
    ),
    "signal": lambda: plots.signal_against_k(KS, {"a": [3, 2, 1], "b": [np.nan, 1, 2]}, floor=0.1, dashed=["b"]),
    "signal, many": lambda: plots.signal_against_k(
        KS, {f"a name that is as long as those of several estimators, {i}": [1, 2 + i, 3 + i] for i in range(18)}
    ),
    "bound, one K": lambda: plots.bound_against_k([50], {"vae": [-88]}, {"vae": [0.1]}),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_every_figure_is_drawn_within_its_page(make, tmp_path):
    figure = make()
    assert isinstance(figure, Figure)
    path = plots.save(figure, tmp_path / "new folder" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    page, ink = figure.bbox_inches, figure.get_tightbbox()
    assert ink.x0 >= -0.02
    assert ink.y0 >= -0.02
    assert ink.x1 <= page.x1 + 0.02
    assert ink.y1 <= page.y1 + 0.02
    assert page.width <= 8


SAME = {
    "curves": FIGURES["curves"],
    "images, scaled": FIGURES["images, scaled"],
    "scatter": lambda: plots.latent_scatter(PROFILES, DIGITS[:11]),
}


@pytest.mark.parametrize(
    ("name", "ending"),
    [("curves", "png"), ("scatter", "png"), ("scatter", "pdf"), ("images, scaled", "svg"), ("curves", "svg")],
)
def test_the_same_figure_is_the_same_file(name, ending, tmp_path):
    make = SAME[name]
    first = plots.save(make(), tmp_path / f"first.{ending}").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 30}):
        figure = make()
        second = plots.save(figure, tmp_path / f"second.{ending}").read_bytes()
        again = plots.save(figure, tmp_path / f"again.{ending}").read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second == again


def test_pyplot_is_never_touched_and_matplotlib_only_when_drawing(tmp_path):
    program = """if True:
    import sys, types
    alone = types.ModuleType("pvae")  # the package without what its __init__ imports
    alone.__path__ = [sys.argv[2]]
    sys.modules["pvae"] = alone
    import pvae.plots as plots
    assert not {"matplotlib", "torch", "pyro"} & set(sys.modules), "imported too early"
    plots.save(plots.image_grid([[[0, 1], [1, 0]]]), sys.argv[1])
    assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
    """
    package = Path(plots.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, tmp_path / "figure.png", package], check=True)


def test_learning_curves_zoom_to_the_late_part_and_say_so():
    epochs = np.arange(1, 101)
    curve = -90 - 500 * np.exp(-epochs / 3)
    axes = plots.learning_curves(epochs, {"train ELBO": curve, "validation ELBO": curve - 2}, title="fit").axes[0]
    low, high = axes.get_ylim()
    assert -100 < low < -92 < -90 < high < -85
    assert axes.texts[0].get_text().startswith("early values outside the axes: ")
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("fit", "epoch", "bound (nats / datum)")


def test_learning_curves_show_everything_where_that_costs_little():
    axes = plots.learning_curves(range(10), {"a": np.linspace(-100, -90, 10)}).axes[0]
    assert axes.get_ylim()[0] < -100
    assert not axes.texts


def test_learning_curves_join_over_gaps_in_the_order_of_the_epochs():
    figure = plots.learning_curves([3, 1, 2], {"a": [-7, -9, np.nan], "b": [-1, -np.inf, None], "none": [None] * 3})
    a, b = figure.axes[0].get_lines()
    assert a.get_xydata().tolist() == [[1, -9], [3, -7]]
    assert b.get_xydata().tolist() == [[3, -1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b\n−1.00", "a\n−7.00"]


def test_reconstructions_name_every_row_and_keep_pairs():
    x = np.zeros((13, 8, 8))
    axes = plots.reconstructions(x, x + 1, columns=5, titles=("test", "mean")).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["test", "mean"] * 3
    image, rows = axes.images[0].get_array(), axes.get_yticks().astype(int)
    assert image[rows[::2], 50].max() == 0
    assert image[rows[1::2], 50].min() == 1


def test_reconstructions_of_a_table_stand_against_the_data_by_column():
    table = PROFILES[:, :3] * [1, 3, 2]
    figure = plots.reconstructions(table, table / 2)
    assert [panel.get_title() for panel in figure.axes] == [
        f"column {i + 1},  R² {1 - (x**2).sum() / 4 / ((x - x.mean()) ** 2).sum():.2f}" for i, x in enumerate(table.T)
    ]
    np.testing.assert_array_equal(figure.axes[1].get_lines()[1].get_xydata(), np.stack([table, table / 2], 2)[:, 1])
    # of many columns those that vary most
    wide = PROFILES * np.where(np.arange(50) % 5 == 2, 3, 0.1)
    titles = [panel.get_title().partition(",")[0] for panel in plots.reconstructions(wide, wide).axes]
    assert len(titles) == 12
    assert {f"column {i}" for i in range(3, 51, 5)} < set(titles)


@pytest.mark.parametrize("columns", [1, 2, 3, 8])
def test_the_names_of_what_is_beside_the_data_are_within_the_figure(columns):
    x = np.tile(PROFILES[:, :1], columns)
    figure = plots.samples(x, x, names=("test data", "samples of the model"))
    figure.draw_without_rendering()
    shown, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= shown.x0 < shown.x1 <= whole.x1


def test_a_run_may_be_called_as_another_line_is():
    figure = plots.bound_against_k([1, 2], {"exact": [-9, -8]}, {"exact": [0.1, 0.1]}, exact=-7)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["exact\n−7.00", "exact\n−8.00"]
    figure = plots.signal_against_k([1, 2], {"no signal": [3.0, 2.0]}, floor=0.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no signal\n2.00", "no signal\n0.50"]


def test_many_lines_are_told_apart_in_the_legend():
    means = {f"run {i}": [-9 - i, -8 - i] for i in range(15)}
    figure = plots.bound_against_k([1, 2], means, dict.fromkeys(means, (0.1, 0.1)))
    lines = [handle.lines[0] for handle in figure.axes[0].containers]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == 15
    assert len({line.get_marker() for line in lines}) == 3
    period = 3.7 + 1.6  # of dashes, in widths of a line of 1.3 points
    assert figure.legends[0].handlelength * 8 > 3 * period * 1.3


def test_khat_of_one_datum_is_a_point():
    figure = plots.khat_quantiles({"one": [0.3], "two": [0.2, 0.4]}, 0.7)
    assert [line.get_marker() for line in figure.axes[0].lines[:2]] == ["o", "None"]


def test_khat_that_could_not_be_fitted_is_counted_and_not_drawn():
    values = {"some": [np.inf, 0.9, -np.inf, np.inf, 0.1, 0.3], "none": [np.inf] * 3}
    figure = plots.khat_quantiles(values, 0.7)
    some, none, _ = figure.axes[0].lines
    assert some.get_xdata().tolist() == [12.5, 37.5, 62.5, 87.5]
    assert some.get_ydata().tolist() == [pytest.approx(0.0 - 0.1), 0.1, 0.3, 0.9]
    assert not none.get_xdata().size
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["some\n25% above\n25% no tail\n2 not fitted", "none\n3 not fitted"]


def test_a_histogram_says_how_many_are_far_out():
    table = np.random.default_rng(0).poisson(3.0, (400, 3)).astype(np.float32)
    table[7, 1] = 400
    titles = [panel.get_title() for panel in plots.samples(table, table[:9]).axes]
    assert titles == ["column 1", "column 2, 2 far out", "column 3"]


def test_samples_of_a_table_are_histograms_beside_the_data():
    figure = plots.samples(PROFILES[:, :3], PROFILES[:5, :3] + 9, names=("here", "there"), title="both")
    assert (figure.get_suptitle(), figure.get_supylabel()) == ("both", "density")
    data, drawn = (patch.get_data() for patch in figure.axes[2].patches)
    assert (data.values * np.diff(data.edges)).sum() == pytest.approx(1)
    assert drawn.values[:5].sum() == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["here", "there"]
    whole = plots.samples([[0, 1, 2], [2, 1, 0]], [[1, 1, 1]]).axes[0].patches[0].get_data()
    assert whole.edges.tolist() == [-0.5, 0.5, 1.5, 2.5]


def test_what_is_a_table():
    image, size = np.linspace(0, 1, 128), {}
    size = {"square": image.reshape(2, 64), "small": image.reshape(8, 16), "oblong": image[:126].reshape(2, 63)}
    assert {name: plots.is_table(x) for name, x in size.items()} == {"square": False, "small": True, "oblong": True}
    assert plots.is_table(size["square"] - 0.5)
    assert not plots.is_table(GREY)


def test_reconstructions_are_clipped_where_the_data_lie_in_the_unit_interval():
    assert len(plots.reconstructions(GREY, GREY * 1.3 - 0.1).axes) == 1
    assert len(plots.reconstructions(GREY * 2, GREY).axes) == 2


def test_image_grid_shows_each_pixel_exactly_once_magnified():
    axes = plots.image_grid(GREY[:4]).axes[0]
    image = np.asarray(axes.images[0].get_array())
    np.testing.assert_array_equal(image[:200:25, :200:25, 0], GREY[0])
    np.testing.assert_array_equal(image[204::25, 204::25, 2], GREY[3])
    assert (image[200:204] == 1).all()
    assert len(axes.get_xticks()) == 0


def test_image_grid_scales_by_one_range_with_a_colour_bar():
    figure = plots.image_grid(np.stack([np.zeros((4, 4)), np.full((4, 4), -2.0), np.full((4, 4), 2.0)]))
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert labels == ["−2", "2"]
    assert figure.axes[0].images[0].get_array()[0, 0, 0] == 0.5


def test_vectors_are_square_images_or_tables():
    assert len(plots.image_grid(np.zeros((5, 64))).axes[0].images) == 1
    assert len(plots.image_grid(np.zeros((5, 49))).axes) == 12


def test_latent_plane_puts_each_image_at_its_coordinates():
    grid_x, grid_y = np.array([-1.5, -0.2, 0.0, 1.0]), np.array([0.0, 2.0])
    value = (np.arange(8) / 10).reshape(2, 4)  # [y, x]
    images = np.broadcast_to(value[..., None, None], (2, 4, 5, 5))
    for given in (images, images.reshape(8, 5, 5)):
        axes = plots.latent_plane(given, grid_x, grid_y).axes[0]
        shown = axes.images[0].get_array()[..., 0]
        x = {t.get_text(): at for t, at in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
        y = {t.get_text(): at for t, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
        assert shown[int(y["0"]), int(x["1"])] == value[0, 3]
        assert shown[int(y["2"]), int(x["0"])] == value[1, 2]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")
        assert y["2"] < y["0"]


def test_latent_scatter_names_classes_up_to_twenty_and_numbers_above():
    z = RNG.normal(size=(300, 2))
    few, many = plots.latent_scatter(z, np.arange(300) % 20), plots.latent_scatter(z, np.arange(300) % 21)
    assert [text.get_text() for text in few.legends[0].get_texts()] == [str(i) for i in range(20)]
    assert (len(few.axes), len(many.axes), many.legends) == (1, 2, [])
    assert len(few.axes[0].collections[0].get_offsets()) == 300
    assert not plots.latent_scatter(z).legends
    assert few.axes[0].get_aspect() == 1


def test_latent_scatter_gives_each_point_the_colour_of_its_class():
    z = RNG.normal(size=(50, 2))
    dots = plots.latent_scatter(z, z[:, 0] > 0).axes[0].collections[0]
    blue = dots.get_facecolors()[:, 2] > 0.5
    np.testing.assert_array_equal(blue, np.asarray(dots.get_offsets())[:, 0] <= 0)


def test_latent_scatter_projects_on_principal_components():
    z = np.random.default_rng(0).normal(size=(500, 4)) * [1, 3, 0, 0] + 7
    axes = plots.latent_scatter(z).axes[0]
    share = z.var(0) / z.var(0).sum()
    assert axes.get_xlabel() == f"principal component 1 ({share[1]:.0%} of variance)"
    points = np.asarray(axes.collections[0].get_offsets())
    assert points.var(0).sum() == pytest.approx(z.var(0).sum())


def test_a_single_latent_unit_is_a_histogram_by_label():
    axes = plots.latent_scatter([[0.0], [1.0], [1.0]], ["a", "b", "b"], title="one").axes[0]
    assert (axes.get_ylabel(), axes.get_title(), len(axes.patches)) == ("number of data", "one", 4)
    assert sum(axes.patches[2].get_data().values) == 2


def test_active_units_are_counted_and_sorted():
    axes = plots.active_units([0.01, 0.5, 0.0, 2.0], threshold=0.01).axes[0]
    assert axes.get_title() == "2 of 4 latent units active"
    active, inactive, line = axes.get_lines()
    assert active.get_ydata().tolist() == [2.0, 0.5]
    assert len(inactive.get_ydata()) == 2
    assert set(line.get_ydata()) == {0.01}
    assert axes.get_yscale() == "log"
    axes = plots.active_units([0.02, 0.5, 0.03], [0.009, 0.3, 0.009]).axes[0]
    assert axes.get_title() == "1 of 3 latent units active"
    assert axes.get_lines()[0].get_xydata().tolist() == [[2.0, 0.03]]


def test_bound_against_k_draws_each_run_and_the_exact_value():
    figure = plots.bound_against_k([100, 1, 10], {"vae": [-87, -90, np.nan]}, {"vae": [0.1, 0.2, 0.1]}, exact=-86)
    axes = figure.axes[0]
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [[1, -90], [100, -87]]
    assert axes.get_lines()[-1].get_linestyle() == "--"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "10", "1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["exact\n−86.00", "vae\n−87.00"]


def test_the_exact_value_of_a_run_has_its_colour_and_its_name():
    figure = plots.bound_against_k(KS, BOUND, ERROR, exact={"iwae": -86})
    (bars,) = [each for each in figure.axes[0].containers if each.get_label() == "iwae"]
    *_, line = figure.axes[0].get_lines()
    assert (line.get_label(), line.get_ydata()) == ("iwae, exact", [-86, -86])
    assert line.get_color() == bars.lines[0].get_color()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["iwae, exact\n−86.00", "iwae\n−86.80", "vae\n−87.00"]


def test_charts_that_compare_say_what_they_are_of():
    titles = [FIGURES[name]().axes[0].get_title() for name in ("bound", "k-hat")]
    assert titles == ["Importance-weighted bounds", "Pareto k-hat of each datum"]


WRONG = {
    "curves: found no finite value": lambda: plots.learning_curves([1], {}),
    r"curve 'a': found shape \(3,\), expected \(2,\)": lambda: plots.learning_curves([1, 2], {"a": [1, 2, 3]}),
    r"epochs: found shape \(1, 1\), expected \(N,\)": lambda: plots.learning_curves([[1]], {"a": [1]}),
    r"images: found shape \(2, 8, 8, 4\), expected \(N, H": lambda: plots.image_grid(np.zeros((2, 8, 8, 4))),
    "images: found the empty shape": lambda: plots.image_grid(np.zeros((0, 8, 8))),
    "images: found 2 values that are NaN": lambda: plots.image_grid([[0, np.nan, np.inf, 1]]),
    "images: found no array of numbers": lambda: plots.image_grid(["a"]),
    r"drawn: found shapes \(13, 8, 8\) and \(11, 50\), expected": lambda: plots.samples(GREY, PROFILES),
    "columns: found 0, expected at least 1": lambda: plots.image_grid(GREY, columns=0),
    r"reconstruction: found shape \(2, 8, 8\), expected \(13,": lambda: plots.reconstructions(GREY, GREY[:2]),
    "images: found shape .* expected 4 images": lambda: plots.latent_plane(GREY, [0, 1], [0, 1]),
    "grid_y: found values that do not increase": lambda: plots.latent_plane(GREY[:2], [0], [1, 1]),
    r"z: found shape \(3,\), expected \(N, L\)": lambda: plots.latent_scatter([1, 2, 3]),
    r"labels: found shape \(1,\), expected \(2,\)": lambda: plots.latent_scatter([[1], [2]], [0]),
    "labels .*21 differ": lambda: plots.latent_scatter(np.zeros((21, 2)), [f"class {i}" for i in range(21)]),
    "variance, threshold: found the smallest -1": lambda: plots.active_units([1, -1]),
    "errors: found runs": lambda: plots.bound_against_k(KS, BOUND, {}),
    "exact: found runs": lambda: plots.bound_against_k(KS, BOUND, ERROR, exact={"elbo": -86}),
    "ks: found 0, expected at least 1": lambda: plots.bound_against_k([0, 1, 2], BOUND, ERROR),
    r"values\['a'\]: found shape \(0,\), expected": lambda: plots.khat_quantiles({"a": []}, 0.7),
    r"values\['a'\]: found shape \(1,\), .* without NaN": lambda: plots.khat_quantiles({"a": [np.nan]}, 0.7),
    "no negative error": lambda: plots.bound_against_k([1], {"a": [1]}, {"a": [-1]}),
    "path: found the ending '.gif', expected one of .png": lambda: plots.save(Figure(), "figure.gif"),
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_input_is_one_line(text):
    with pytest.raises(InputError, match=text) as error:
        WRONG[text]()
    assert "\n" not in str(error.value)
