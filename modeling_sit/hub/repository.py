"""A model's repository on the Hub, and what the Hub's library says of trouble, in one line with the remedy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from modeling_sit.runtime.errors import SiTError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# Client errors, by their number, that may be gone at the next try: timeouts, conflicts, rate limits.
PASSING_STATUSES = (408, 409, 412, 423, 425, 429)
TEXT_ENDINGS = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml")
MAX_MESSAGE_LENGTH = 300
# The library itself waits for an answer as long as it takes.
SECONDS_TO_ANSWER, SECONDS_TO_COMMIT = 20.0, 120.0


class HubUnreachable(Exception):
    """The Hub did not do what it was asked to, and may do it later. The message says why, in one line."""


class HubRepository:
    """
    The repository that a model goes to.

    Args:
        name (`str`): `NAME` or `NAMESPACE/NAME`; the namespace is by default that of the user.
        private (`bool`, *optional*, defaults to `False`): Whether it must be private; else that is left to the Hub.

    Raises:
        [`SiTError`]: If the Hub has no such names.
    """

    def __init__(self, name: str, private: bool = False):
        try:
            validate_repo_id(name)
        except HFValidationError as problem:
            raise SiTError(
                f"--hub_model_id {name}: no name for a repository, which is made of letters, digits, and -, _ or . between "
                "them: give NAME or NAMESPACE/NAME"
            ) from problem
        self.name, self.private = name, private
        self.is_ready = False

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.name}"

    def check_login(self) -> None:
        """Ask the Hub who the token's user is, and complete the repository's name by that.

        Raises:
            [`SiTError`]: If there is no token, or not one to write with.
            [`HubUnreachable`]: If the Hub does not answer.
        """
        if get_token() is None:
            raise SiTError(f"--push_to_hub: you are not logged in to the Hub: {LOG_IN}")
        with self._one_line_errors(SECONDS_TO_ANSWER):
            user = HfApi(token=True).whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise SiTError(f"--push_to_hub: your Hub token is for reading only: {LOG_IN} to one that may write")
        if "/" not in self.name:
            self.name = f"{user['name']}/{self.name}"

    def create(self) -> None:
        """Make the repository, if it is not there, and make sure that the user may write to it.

        Raises:
            [`SiTError`]: If the user may not, or it is public and was to be private.
            [`HubUnreachable`]: If the Hub does not answer, or fails.
        """
        hub = HfApi(token=True)
        with self._one_line_errors(SECONDS_TO_ANSWER):
            hub.create_repo(self.name, private=self.private or None, exist_ok=True)
            hub.auth_check(self.name, write=True)
            is_private = hub.model_info(self.name, expand=["private"], timeout=SECONDS_TO_ANSWER).private
        if self.private and not is_private:
            raise SiTError(
                f"--hub_private_repo: {self.url} is there already, and public: make it private in its settings, or give "
                "another --hub_model_id"
            )
        self.is_ready = True

    def commit(self, files: Mapping[str, Path], message: str, replaced_folders: tuple[str, ...] = ()) -> None:
        """Write files to the repository, all or none of them; those that are there as they are cost nothing.

        Args:
            files (mapping from `str` to `Path`): Each file by its path in the repository.
            message (`str`): Says what is new.
            replaced_folders (`tuple` of `str`, *optional*): Folders of the repository that shall have no other files.

        Raises:
            [`SiTError`]: If the user may not write, or a file holds the user's token.
            [`HubUnreachable`]: If the Hub does not answer, or fails.
        """
        check_for_token(files)
        if not self.is_ready:
            self.check_login()
            self.create()
        hub = HfApi(token=True)
        with self._one_line_errors(SECONDS_TO_COMMIT):
            operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
            if replaced_folders:
                for name in hub.list_repo_files(self.name):
                    if name.partition("/")[0] in replaced_folders and name not in files:
                        operations.append(CommitOperationDelete(name, is_folder=False))
            hub.create_commit(self.name, operations, commit_message=message)

    @contextmanager
    def _one_line_errors(self, seconds: float) -> Iterator[None]:
        """Whatever the library raises becomes one of two errors: the user's mistake, or to be tried again. So does a Hub that
        says nothing for so many seconds."""
        client = get_session()  # the whole process's
        usual, client.timeout = client.timeout, seconds
        try:
            yield
        except Exception as problem:  # its own, its HTTP library's, its upload's: what they are is not in its contract
            message, is_mistake = _explain(problem, self.name, self.url)
            raise (SiTError if is_mistake else HubUnreachable)(_without_token(message)) from problem
        finally:
            client.timeout = usual


def check_for_token(files: Mapping[str, Path]) -> None:
    """Raise [`SiTError`] if one of the texts that would be published holds the user's token."""
    token = get_token()
    for file in files.values():
        if token and file.suffix in TEXT_ENDINGS and token in file.read_text(encoding="utf-8", errors="replace"):
            raise SiTError(
                f"{file} holds your Hub token, and is not pushed: take it out, and get yourself a new token"
            )


def _explain(problem: BaseException, name: str, url: str) -> tuple[str, bool]:
    """What went wrong, and whether it is for the user to put right rather than to be tried again.

    Never by the errors' own texts where they are of HTTP: they have addresses in them, signed ones too.
    """
    if isinstance(problem, OfflineModeIsEnabled):
        return "the Hub cannot be reached while HF_HUB_OFFLINE is set: unset it", True
    if isinstance(problem, LocalTokenNotFoundError):
        return f"you are not logged in to the Hub: {LOG_IN}", True
    answer = next((cause for cause in _causes(problem) if isinstance(cause, HfHubHTTPError)), None)
    if answer is None:
        cause = list(_causes(problem))[-1]
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:MAX_MESSAGE_LENGTH]
        return f"no answer from the Hub at {constants.ENDPOINT} ({type(cause).__name__}: {reason})", False
    status = answer.response.status_code
    said = " ".join((answer.server_message or "").split())[:MAX_MESSAGE_LENGTH]
    said = f" (it says: {said})" if said else ""
    if isinstance(answer, GatedRepoError):
        return f"{name} is gated, and you have no access: ask for it at {url}, or give another --hub_model_id", True
    if status == 401:
        return f"the Hub does not know your token{said}: {LOG_IN} anew", True
    if status in (403, 404):
        return (
            f"you may not write to {name}, or there is no such user or organization{said}: give another --hub_model_id, or "
            f"{LOG_IN} to a token that may write there"
        ), True
    if status == 409:
        return f"another change to {name} came first{said}", False
    if 400 <= status < 500 and status not in PASSING_STATUSES:
        return f"the Hub refuses {name}: error {status}{said}", True
    return f"the Hub fails: error {status}{said}", False


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """An error, and what it came of."""
    while problem is not None:
        yield problem
        problem = problem.__cause__


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "***") if token else text
