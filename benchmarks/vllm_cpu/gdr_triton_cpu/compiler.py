"""The half of the backend that would compile."""

from triton.backends.compiler import BaseBackend


class InterpretedBackend(BaseBackend):  # type: ignore[misc]
    """Compiles nothing."""

    @staticmethod
    def supports_target(target: object) -> bool:
        return False

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict) -> object:  # type: ignore[type-arg]
        return options

    def add_stages(self, stages: dict, options: object, language: object) -> None:  # type: ignore[type-arg]
        raise NotImplementedError("set TRITON_INTERPRET=1")

    def load_dialects(self, context: object) -> None:
        pass

    def get_module_map(self) -> dict:  # type: ignore[type-arg]
        return {}
