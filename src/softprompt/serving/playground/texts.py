"""What the playground says, in English and Spanish, and which of the two a browser asks for.

Owns the words. Does not know where on the page they stand. Errors and diagnoses come from elsewhere, in English.
"""

from __future__ import annotations

from collections.abc import Mapping

Texts = Mapping[str, str]

_BOTH = {
    "served": ("Base model: {base}. Prompts loaded: {count}.", "Modelo base: {base}. Prompts cargados: {count}."),
    "nothing_served": (
        "{base} answers, but no soft prompt is loaded yet: `softprompt library add NAME PROMPT`, then load it.",
        "{base} responde, pero aún no hay soft prompts cargados: `softprompt library add NOMBRE PROMPT` y cárguelo.",
    ),
    "try": ("Try", "Probar"),
    "try_help": (
        "Each task answers your text twice: behind its soft prompt, and by the base model alone in the same template.",
        "Cada tarea responde a su texto dos veces: con su soft prompt, y solo con el modelo base y la misma plantilla.",
    ),
    "tasks": ("Tasks", "Tareas"),
    "text": ("Text", "Texto"),
    "ask": ("Ask", "Preguntar"),
    "with_prompt": ("With the soft prompt", "Con el soft prompt"),
    "base_alone": ("Base model alone", "Solo el modelo base"),
    "choose_task": ("Choose a task.", "Elija una tarea."),
    "too_long": ("A text has at most {most} characters here.", "Aquí un texto tiene como máximo {most} caracteres."),
    "type_text": ("Type a text first.", "Escriba antes un texto."),
    "truncated": ("The text was cut to fit the context.", "El texto se ha recortado para caber en el contexto."),
    "more_labels": ("and {count} more labels", "y {count} etiquetas más"),
    "waiting": ("waiting …", "esperando …"),
    "file": ("File", "Archivo"),
    "file_help": (
        "Answers for every row of a CSV file, which has a column for each name in the task's template. A column "
        "`label` (or the task's answers) is compared with what is found.",
        "Respuestas para cada fila de un archivo CSV, que tiene una columna por cada nombre de la plantilla de la "
        "tarea. Una columna `label` (o las respuestas de la tarea) se compara con lo encontrado.",
    ),
    "task": ("Task", "Tarea"),
    "csv": ("CSV file", "Archivo CSV"),
    "file_base": ("Ask the base model alone, too", "Preguntar también solo al modelo base"),
    "file_ask": ("Answer all rows", "Responder a todas las filas"),
    "download": ("Download the answers", "Descargar las respuestas"),
    "choose_file": ("Choose a CSV file first.", "Elija antes un archivo CSV."),
    "too_many_rows": (
        "The file has {count} rows, but this page takes at most {most}: use `softprompt predict`.",
        "El archivo tiene {count} filas, pero esta página admite {most} como máximo: use `softprompt predict`.",
    ),
    "progress": ("{done} of {all} answers", "{done} de {all} respuestas"),
    "answered": ("{count} rows answered.", "{count} filas respondidas."),
    "answers_caption": ("The first {count} answers", "Las primeras {count} respuestas"),
    "figures_caption": ("From 0 to 1; log loss in nats", "De 0 a 1; pérdida logarítmica en nats"),
    "figure": ("figure", "medida"),
    "row": ("row", "fila"),
    "right": ("right answer", "respuesta correcta"),
    "cut_rows": ("Texts cut to fit the context: {count}", "Textos recortados para caber en el contexto: {count}"),
    "library": ("Library", "Biblioteca"),
    "library_caption": ("The prompts in the library", "Los prompts de la biblioteca"),
    "library_empty": (
        "The library is empty. Train a prompt, then add it: `softprompt library add NAME PROMPT`.",
        "La biblioteca está vacía. Entrene un prompt y añádalo: `softprompt library add NOMBRE PROMPT`.",
    ),
    "prompt": ("prompt", "prompt"),
    "loaded": ("loaded", "cargado"),
    "not_loaded": ("not loaded", "no cargado"),
    "versions": ("versions", "versiones"),
    "virtual_tokens": ("virtual tokens", "tokens virtuales"),
    "kind": ("answers with", "responde con"),
    "free_text": ("free text", "texto libre"),
    "no_task": ("no task", "sin tarea"),
    "validation": ("validation", "validación"),
    "card": ("Card of {id}", "Ficha de {id}"),
    "runs": ("Runs", "Entrenamientos"),
    "run": ("Training run", "Entrenamiento"),
    "no_runs": (
        "There is no training run in {folder} yet: `softprompt train TASK.yaml --output {folder}/NAME` makes one.",
        "Aún no hay entrenamientos en {folder}: `softprompt train TAREA.yaml --output {folder}/NOMBRE` crea uno.",
    ),
    "no_such_run": ("There is no such run any more.", "Ese entrenamiento ya no existe."),
    "run_finished": ("Finished: {step} steps logged.", "Terminado: {step} pasos registrados."),
    "run_going": ("Step {step} of at most {most}", "Paso {step} de {most} como máximo"),
    "run_no_steps": (
        "Nothing is logged yet. (A run whose recipe turns the monitor off has no curves here.)",
        "Aún no hay nada registrado. (Un entrenamiento cuya receta apaga el monitor no tiene curvas aquí.)",
    ),
    "loss": ("Loss", "Pérdida"),
    "loss_unit": ("loss (nats)", "pérdida (nats)"),
    "loss_help": (
        "Lower is better. Where validation rises while training falls, the prompt learns its rows by heart.",
        "Cuanto más baja, mejor. Si sube la de validación y baja la otra, el prompt se aprende sus filas de memoria.",
    ),
    "training": ("training", "entrenamiento"),
    "step": ("training step", "paso de entrenamiento"),
    "shares": ("Validation", "Validación"),
    "shares_unit": ("share (0 to 1)", "proporción (0 a 1)"),
    "shares_help": ("Higher is better.", "Cuanto más alta, mejor."),
    "gradients": (
        "How strongly the loss pulls at each virtual token",
        "Con qué fuerza tira la pérdida de cada token virtual",
    ),
    "gradients_unit": ("norm of the loss's gradient (logarithmic)", "norma del gradiente de la pérdida (logarítmica)"),
    "gradients_help": (
        "Each row is a virtual token, each column a logged step. Bright: pulled strongly; dark: hardly; grey: not.",
        "Cada fila es un token virtual, cada columna un paso. Claro: se tira con fuerza; oscuro: apenas; gris: nada.",
    ),
    "virtual_token": ("virtual token, from 0", "token virtual, desde 0"),
    "compare": ("Compare", "Comparar"),
    "compare_help": (
        "Two versions answer the same CSV file. Where it has the right answers, both are measured.",
        "Dos versiones responden al mismo archivo CSV. Si tiene las respuestas correctas, se miden ambas.",
    ),
    "first": ("First version", "Primera versión"),
    "second": ("Second version", "Segunda versión"),
    "choose_two": ("Choose two versions.", "Elija dos versiones."),
    "agree": (
        "The two agree on {same} of {all} rows ({share}).",
        "Las dos coinciden en {same} de {all} filas ({share}).",
    ),
    "differences_caption": ("The first {count} differences", "Las primeras {count} diferencias"),
    "failed": ("the server has failed at this request", "el servidor ha fallado con esta petición"),
}

TEXTS: Mapping[str, Texts] = {
    language: {key: both[place] for key, both in _BOTH.items()} for place, language in enumerate(("en", "es"))
}


def texts_for(accepted: str) -> Texts:
    """The texts in the first language of the header `Accept-Language` that there is; else in English."""
    languages = (part.strip()[:2].lower() for part in accepted.split(","))
    return TEXTS[next((language for language in languages if language in TEXTS), "en")]
