// What eslint demands: of the tab's scripts, in a browser, beside a WebUI's own globals.
import js from "@eslint/js";
import globals from "globals";

export default [
    { ignores: ["overlay*/", "data/", "output/"] },
    js.configs.recommended,
    {
        files: ["javascript/**/*.js"],
        languageOptions: {
            sourceType: "module",
            globals: {
                ...globals.browser,
                // the WebUI's
                gradioApp: "readonly",
                onUiLoaded: "readonly",
                onUiTabChange: "readonly",
                onOptionsChanged: "readonly",
                updateInput: "readonly",
            },
        },
        rules: {
            eqeqeq: "error",
            "no-var": "error",
            "prefer-const": "error",
            "no-unused-vars": ["error", { caughtErrors: "none" }],
            "max-lines-per-function": ["error", 80],
        },
    },
    { files: ["javascript/lora_trainer.js"], languageOptions: { sourceType: "script" } },
    {
        // a WebUI of the tests' own: what its page and extensions call stands here
        files: ["tests/webui/fake_host/script.js"],
        languageOptions: { sourceType: "script", globals: globals.browser },
        rules: { "no-unused-vars": "off" },
    },
];
