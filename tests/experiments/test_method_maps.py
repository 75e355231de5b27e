"""Maps of the test images by every method."""

from types import SimpleNamespace

from modeling_sit.data.sources import load_images
from modeling_sit.experiments.comparison_runs import Start
from modeling_sit.experiments.method_maps import write_maps
from modeling_sit.visualization import embeddings


def test_a_map_for_each_start_with_the_images_below(save_images, save_tiny_sit, tmp_path, monkeypatch):
    for seed, name in enumerate(("rose", "tulip")):
        save_images(tmp_path / "flowers" / name, 4, seed=seed)
    images = load_images(str(tmp_path / "flowers"))
    folder = str(save_tiny_sit(tmp_path / "model"))
    calls, figure = [], embeddings.embedding_figure
    monkeypatch.setattr(embeddings, "embedding_figure", lambda *parts: calls.append(parts) or figure(*parts))
    arguments = SimpleNamespace(seeds=[3], dataset=str(tmp_path / "flowers"), set_intensity_range=lambda *of: None)
    starts = {
        "sit": Start({3: folder}),
        "mae": Start({3: folder}, pooling="mean"),
        "scratch": Start({3: folder}, from_scratch=True),
    }
    write_maps(tmp_path, SimpleNamespace(test=images.train, label_names=images.label_names), starts, arguments)
    ((maps, groups, legend_title, caption),) = calls
    assert [each.title for each in maps] == ["sit", "mae", "untrained"] and legend_title == "class"
    assert len({each.points.tobytes() for each in maps}) == 3 and [group.name for group in groups] == ["rose", "tulip"]
    assert caption == "8 images of flowers, split train"
    page = (tmp_path / "embeddings.html").read_text()
    assert "features of sit, mae, untrained." in page and (tmp_path / "embeddings.png").stat().st_size > 0
