"""What the playground says, in English and Spanish, and which of the two a browser asks for.

Owns the words. Does not know where on the page they stand. Errors and diagnoses come from elsewhere, in English.
"""

from __future__ import annotations

from collections.abc import Mapping

Texts = Mapping[str, str]

TEXTS: Mapping[str, Texts] = {
    "en": {
        "title": "softprompt playground",
        "served": "Base model: {base}. Prompts loaded: {count}.",
        "nothing_served": "{base} answers, but no soft prompt is loaded yet: add one with "
        "`softprompt library add NAME PROMPT` and load it.",
        "try": "Try",
        "try_help": "Choose tasks and type a text. Each task answers twice: behind its soft prompt, and by the base "
        "model alone with the same words around your text.",
        "tasks": "Tasks",
        "tasks_info": "One or several",
        "text": "Text",
        "text_placeholder": "A text to ask about",
        "ask": "Ask",
        "with_prompt": "With the soft prompt",
        "base_alone": "Base model alone",
        "choose_task": "Choose at least one task.",
        "type_text": "Type a text first.",
        "fill_in": "This task needs a text for: {column}",
        "too_many_columns": "its template has {count} columns, more than fit here: use a file",
        "too_long": "The text has {count} characters, but this page takes at most {most}: shorten it.",
        "row_too_long": "row {row} has {count} characters, but this page takes at most {most} a row: shorten it",
        "truncated": "The text was cut to fit the model's context.",
        "more_labels": "and {count} more labels",
        "waiting": "waiting …",
        "file": "File",
        "file_help": "Answers for every row of a CSV file, which has a column for each name in the task's template. A "
        "column `label` (or the task's answers) is compared with what is found.",
        "task": "Task",
        "csv": "CSV file",
        "file_base": "Ask the base model alone, too",
        "file_ask": "Answer all rows",
        "download": "Download the answers",
        "choose_file": "Choose a CSV file first.",
        "only_csv": "The file's name must end in .csv.",
        "too_many_rows": "The file has {count} rows, but this page takes at most {most}: use `softprompt predict`.",
        "progress": "{done} of {all} answers",
        "answered": "{count} rows answered.",
        "answers_caption": "The first {count} answers",
        "figures_caption": "How the answers compare with the file's own, from 0 to 1; rows and log loss (nats) aside",
        "figure": "figure",
        "row": "row",
        "rows": "rows",
        "right": "right answer",
        "probability": "probability",
        "cut_rows": "{count} texts were cut to fit the model's context.",
        "library": "Library",
        "library_help": "The prompts in the library: versions, tasks, bases, settings and figures.",
        "library_caption": "The prompts in the library",
        "library_empty": "The library is empty. Train a prompt, then add it: `softprompt library add NAME PROMPT`.",
        "refresh": "Refresh",
        "prompt": "prompt",
        "state": "state",
        "loaded": "loaded",
        "loaded_other": "{id} is loaded",
        "not_loaded": "not loaded",
        "versions": "versions",
        "virtual_tokens": "virtual tokens",
        "kind": "answers with",
        "free_text": "free text",
        "no_task": "no task",
        "validation": "validation",
        "size": "size, kB",
        "created": "made",
        "card": "Card of {id}",
        "runs": "Runs",
        "runs_help": "Training runs in the folder that the server was told of, with their curves while they learn.",
        "run": "Training run",
        "run_info": "The newest first; the curves follow the run every few seconds",
        "no_runs": "There is no training run in {folder} yet: `softprompt train TASK.yaml --output {folder}/NAME` "
        "makes one, `softprompt serve --runs DIR` looks elsewhere.",
        "no_such_run": "There is no such run any more: choose another one.",
        "run_finished": "Finished: {step} steps logged, and the prompt is saved.",
        "run_going": "Step {step} of at most {most}; the prompt is not saved yet.",
        "run_no_steps": "Nothing is logged yet. (A run whose recipe turns the monitor off has no curves here.)",
        "run_damaged": "{file} is damaged or missing; the curves are those of what can be read.",
        "loss": "Loss",
        "loss_unit": "loss (nats)",
        "loss_help": "Lower is better. Where validation rises while training falls, the prompt learns its rows by "
        "heart.",
        "training": "training",
        "step": "training step",
        "shares": "Validation",
        "shares_unit": "share (0 to 1)",
        "shares_help": "Higher is better: the share of validation rows answered well.",
        "gradients": "How strongly each virtual token is pulled",
        "gradients_unit": "norm of the loss's gradient (logarithmic)",
        "gradients_help": "Each row is a virtual token, each column a logged step. Bright: the loss pulls at this "
        "token; dark: it hardly does; grey: not at all.",
        "virtual_token": "virtual token, from 0",
        "healthy": "The monitor's checks find nothing wrong.",
        "compare": "Compare",
        "compare_help": "Two versions of a prompt answer the same CSV file. Where the file has the right answers, both "
        "are measured.",
        "first": "First version",
        "second": "Second version",
        "compare_ask": "Compare",
        "choose_two": "Choose two versions.",
        "agree": "The two agree on {same} of {all} rows ({share}).",
        "differences_caption": "The first {count} rows that they answer differently",
        "failed": "the server has failed at this request",
    },
    "es": {
        "title": "softprompt: zona de pruebas",
        "served": "Modelo base: {base}. Prompts cargados: {count}.",
        "nothing_served": "{base} responde, pero aún no hay ningún soft prompt cargado: añada uno con "
        "`softprompt library add NOMBRE PROMPT` y cárguelo.",
        "try": "Probar",
        "try_help": "Elija tareas y escriba un texto. Cada tarea responde dos veces: con su soft prompt, y solo con el "
        "modelo base y las mismas palabras alrededor de su texto.",
        "tasks": "Tareas",
        "tasks_info": "Una o varias",
        "text": "Texto",
        "text_placeholder": "Un texto sobre el que preguntar",
        "ask": "Preguntar",
        "with_prompt": "Con el soft prompt",
        "base_alone": "Solo el modelo base",
        "choose_task": "Elija al menos una tarea.",
        "type_text": "Escriba antes un texto.",
        "fill_in": "Esta tarea necesita un texto para: {column}",
        "too_many_columns": "su plantilla tiene {count} columnas, más de las que caben aquí: use un archivo",
        "too_long": "El texto tiene {count} caracteres, pero esta página admite {most} como máximo: acórtelo.",
        "row_too_long": "la fila {row} tiene {count} caracteres, pero esta página admite {most} por fila: acórtela",
        "truncated": "El texto se ha recortado para que quepa en el contexto del modelo.",
        "more_labels": "y {count} etiquetas más",
        "waiting": "esperando …",
        "file": "Archivo",
        "file_help": "Respuestas para cada fila de un archivo CSV, que tiene una columna por cada nombre de la "
        "plantilla de la tarea. Una columna `label` (o las respuestas de la tarea) se compara con lo encontrado.",
        "task": "Tarea",
        "csv": "Archivo CSV",
        "file_base": "Preguntar también solo al modelo base",
        "file_ask": "Responder a todas las filas",
        "download": "Descargar las respuestas",
        "choose_file": "Elija antes un archivo CSV.",
        "only_csv": "El nombre del archivo debe terminar en .csv.",
        "too_many_rows": "El archivo tiene {count} filas, pero esta página admite {most} como máximo: use "
        "`softprompt predict`.",
        "progress": "{done} de {all} respuestas",
        "answered": "{count} filas respondidas.",
        "answers_caption": "Las primeras {count} respuestas",
        "figures_caption": "Las respuestas frente a las del archivo, de 0 a 1, salvo filas y pérdida logarítmica "
        "(nats)",
        "figure": "medida",
        "row": "fila",
        "rows": "filas",
        "right": "respuesta correcta",
        "probability": "probabilidad",
        "cut_rows": "{count} textos se han recortado para que quepan en el contexto del modelo.",
        "library": "Biblioteca",
        "library_help": "Los prompts de la biblioteca: versiones, tareas, bases, ajustes y cifras.",
        "library_caption": "Los prompts de la biblioteca",
        "library_empty": "La biblioteca está vacía. Entrene un prompt y añádalo: "
        "`softprompt library add NOMBRE PROMPT`.",
        "refresh": "Actualizar",
        "prompt": "prompt",
        "state": "estado",
        "loaded": "cargado",
        "loaded_other": "está cargado {id}",
        "not_loaded": "no cargado",
        "versions": "versiones",
        "virtual_tokens": "tokens virtuales",
        "kind": "responde con",
        "free_text": "texto libre",
        "no_task": "sin tarea",
        "validation": "validación",
        "size": "tamaño, kB",
        "created": "creado",
        "card": "Ficha de {id}",
        "runs": "Entrenamientos",
        "runs_help": "Los entrenamientos de la carpeta indicada al servidor, con sus curvas mientras aprenden.",
        "run": "Entrenamiento",
        "run_info": "Primero el más reciente; las curvas lo siguen cada pocos segundos",
        "no_runs": "Aún no hay ningún entrenamiento en {folder}: "
        "`softprompt train TAREA.yaml --output {folder}/NOMBRE` crea uno, `softprompt serve --runs CARPETA` "
        "busca en otra parte.",
        "no_such_run": "Ese entrenamiento ya no existe: elija otro.",
        "run_finished": "Terminado: {step} pasos registrados, y el prompt está guardado.",
        "run_going": "Paso {step} de {most} como máximo; el prompt aún no está guardado.",
        "run_no_steps": "Aún no hay nada registrado. (Un entrenamiento cuya receta apaga el monitor no tiene curvas "
        "aquí.)",
        "run_damaged": "{file} está dañado o falta; las curvas son las de lo que se puede leer.",
        "loss": "Pérdida",
        "loss_unit": "pérdida (nats)",
        "loss_help": "Cuanto más baja, mejor. Si la de validación sube mientras baja la de entrenamiento, el prompt se "
        "aprende sus filas de memoria.",
        "training": "entrenamiento",
        "step": "paso de entrenamiento",
        "shares": "Validación",
        "shares_unit": "proporción (0 a 1)",
        "shares_help": "Cuanto más alta, mejor: la proporción de filas de validación bien respondidas.",
        "gradients": "Con qué fuerza se tira de cada token virtual",
        "gradients_unit": "norma del gradiente de la pérdida (logarítmica)",
        "gradients_help": "Cada fila es un token virtual, cada columna un paso registrado. Claro: la pérdida tira de "
        "este token; oscuro: apenas; gris: nada.",
        "virtual_token": "token virtual, desde 0",
        "healthy": "Las comprobaciones del monitor no encuentran ningún fallo.",
        "compare": "Comparar",
        "compare_help": "Dos versiones de un prompt responden al mismo archivo CSV. Si el archivo tiene las respuestas "
        "correctas, se miden ambas.",
        "first": "Primera versión",
        "second": "Segunda versión",
        "compare_ask": "Comparar",
        "choose_two": "Elija dos versiones.",
        "agree": "Las dos coinciden en {same} de {all} filas ({share}).",
        "differences_caption": "Las primeras {count} filas a las que responden distinto",
        "failed": "el servidor ha fallado con esta petición",
    },
}


def texts_for(accepted: str | None) -> Texts:
    """The texts in the language that the header `Accept-Language` likes best of those there are; else in English."""
    ranked: list[tuple[float, str]] = []
    for part in (accepted or "").split(","):
        tag, _, weight = part.partition(";")
        language = tag.strip().partition("-")[0].lower()
        if language in TEXTS:
            ranked.append((_weight(weight), language))
    likes, best = max(ranked, key=lambda one: one[0], default=(0.0, "en"))
    return TEXTS[best if likes > 0 else "en"]


def _weight(text: str) -> float:
    try:
        return float(text.strip().removeprefix("q=") or 1)
    except ValueError:
        return 0.0
