"""What a run has written is deleted, and nothing else."""

import pytest

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import (
    MODEL_FILES,
    check_foreign,
    delete_files,
    find_files,
    is_marked,
    keep_foreign,
    mark_run,
    set_aside,
)


def tree(folder) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


class TestMark:
    def test_says_which_programs_wrote_there(self, tmp_path):
        folder = tmp_path / "a" / "run"
        assert not is_marked(folder)
        for _ in range(2):
            mark_run(folder, "pretrain")
        assert is_marked(folder) and is_marked(folder, "pretrain") and not is_marked(folder, "finetune")
        mark_run(folder, "finetune")
        assert is_marked(folder, "pretrain") and is_marked(folder, "finetune")
        assert len(list(folder.iterdir())) == 1

    def test_goes_with_a_folder_that_is_renamed(self, tmp_path):
        mark_run(tmp_path / "a", "pretrain")
        assert is_marked((tmp_path / "a").rename(tmp_path / "b"), "pretrain")


class TestDeleting:
    def test_files_and_folders_that_are_empty_then(self, tmp_path):
        folder = tmp_path / "run"
        for name in ("a/b/1.png", "a/c/1.png", "a/c/mine.txt", "1.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        (folder / "empty").mkdir()
        delete_files(folder, find_files(folder, ["1.png", "a/*/1.png"]))
        assert tree(folder) == {"a/c/mine.txt": "a/c/mine.txt"}
        assert not (folder / "a" / "b").exists() and (folder / "empty").exists()
        delete_files(folder, [folder / "a" / "c" / "mine.txt"])
        (folder / "empty").rmdir()
        delete_files(folder, [])
        assert list(tmp_path.iterdir()) == []

    def test_what_is_behind_a_link_is_in_the_folder_and_the_link_is_the_users(self, tmp_path):
        """Checkpoints on another disk."""
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "1.png").write_text("")
        (tmp_path / "other").write_text("")
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "previews").symlink_to(tmp_path / "disk")
        (folder / "2.png").symlink_to(tmp_path / "other")
        delete_files(folder, find_files(folder, ["previews/*.png", "2.png"]))
        assert [path.name for path in folder.iterdir()] == ["previews"]
        assert list((tmp_path / "disk").iterdir()) == [] and (tmp_path / "other").exists()


class TestForeignFiles:
    def test_are_refused_or_renamed(self, tmp_path, capsys):
        for name in ("config.json", "config.old.json", "modeling_sit.py", "notes.txt"):
            (tmp_path / name).write_text(name)
        with pytest.raises(SiTError, match=r"config\.json, modeling_sit\.py") as error:
            check_foreign(tmp_path, MODEL_FILES)
        assert error.value.argument == "output_dir" and error.value.remedy
        keep_foreign(tmp_path, MODEL_FILES)
        assert tree(tmp_path) == {
            "config.old.json": "config.old.json",
            "config.old-2.json": "config.json",
            "modeling_sit.old.py": "modeling_sit.py",
            "notes.txt": "notes.txt",
        }
        assert capsys.readouterr().err.count("from now on") == 2
        check_foreign(tmp_path, MODEL_FILES)

    def test_nothing_is_lost_by_setting_aside_again_and_again(self, tmp_path):
        path = tmp_path / "README.md"
        names = []
        for number in range(3):
            path.write_text(str(number))
            names.append(set_aside(path).name)
        assert names == ["README.old.md", "README.old-2.md", "README.old-3.md"]
        assert tree(tmp_path) == {name: str(number) for number, name in enumerate(names)}
