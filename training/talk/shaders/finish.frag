#version 330

in vec2 at;

uniform sampler2D head;      // larger than the picture, transparent beside the head
uniform sampler2D backdrop;
uniform float texel;         // of the head's picture

out vec4 colour;

// The head, scaled down with a Gaussian, before the backdrop; in sRGB, near enough.
void main() {
    vec4 sum = vec4(0.0);
    float weights = 0.0;
    for (int i = -2; i <= 2; i++) {
        for (int j = -2; j <= 2; j++) {
            vec2 offset = vec2(i, j);
            float weight = exp(-dot(offset, offset) * 0.42);
            vec4 drawn = texture(head, at + offset * texel);
            sum += weight * vec4(drawn.rgb * drawn.a, drawn.a);
            weights += weight;
        }
    }
    sum /= weights;
    vec3 linear = sum.rgb + (1.0 - sum.a) * texture(backdrop, at).rgb;
    colour = vec4(pow(linear, vec3(1.0 / 2.2)), 1.0);
}
